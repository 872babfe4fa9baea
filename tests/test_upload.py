"""What a working directory would send is what Ray sends of it, and too much is refused with its names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

from orchestrator import upload
from orchestrator.errors import ConfigError
from orchestrator.upload import upload_of
from tests.architecture.modules import ROOT


def fill(folder: Path, **sizes: int) -> None:
    for name, size in sizes.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    fill(place, code__net=10, code__deep__more=20, data__a=300, data__b=400, notes=5, runs__old=7)
    fill(place, **{".git__head": 9, "code____pycache____net": 8})
    (place / ".rayignore").write_text("runs/\n", encoding="utf-8")
    (place / "code" / ".gitignore").write_text("more\n", encoding="utf-8")
    return place


def test_it_counts_what_ray_sends(folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "sent.zip"
    assert get_uri_for_directory(str(folder), include_gitignore=True)
    excludes = [".git", ".venv", "venv", "__pycache__"]
    create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as sent:
        names = {entry.filename: entry.file_size for entry in sent.infolist() if not entry.is_dir()}
    assert dict(upload_of(folder).files) == names
    assert {"code/net", "data/a", "notes"} <= names.keys()


def test_too_much_is_refused_and_the_largest_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_of(folder).check()
    monkeypatch.setattr(upload, "LIMIT_BYTES", 700)
    with pytest.raises(ConfigError) as caught:
        upload_of(folder).check()
    told = str(caught.value)
    assert "the largest are: data/ 0.0 MiB, code/ 0.0 MiB" in told
    assert f"list what the job does not need in {folder / '.rayignore'}" in told
    with (folder / ".rayignore").open("a", encoding="utf-8") as ignore:
        ignore.write("data/b\n")
    upload_of(folder).check()


def test_a_copy_is_whole_and_its_digest_follows_the_contents(folder: Path, tmp_path: Path) -> None:
    sent = upload_of(folder)
    sent.copy_to(tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    }
    assert copied == {path for path in sent.files if not path.endswith("ignore")}
    before = sent.digest()
    (folder / "notes").write_text("other")
    assert upload_of(folder).digest() != before


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the working directory does not exist"):
        upload_of(tmp_path / "none")


def test_this_repository_is_a_small_upload() -> None:
    """`ray job submit --working-dir .`: `.rayignore` leaves data, environments and results out."""
    sent = upload_of(ROOT)
    assert sent.bytes < 20 * 2**20, sent.largest()
    assert {"jobs/pipeline.py", "orchestrator/cli.py", "examples/digits.yaml"} <= sent.files.keys()
    assert not [path for path in sent.files if path.startswith(("tests/", "docs/", "runs/", ".git/"))]
