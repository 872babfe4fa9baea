"""`orchestrator choose` on a finished run: its search's variants take part, nothing is done again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.pipeline import run as pipeline
from orchestrator.store.store import Store
from tests.pipeline.command import Answer, command
from tests.pipeline.tiny import Finished, write

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Copy:
    """The finished run in a place of its own: choosing leaves refs and a section of the page."""

    store: Store
    folder: Path
    file: Path

    def choose(self, *more: str) -> Answer:
        return command("choose", self.file, "--store", self.store.root, *more)


@pytest.fixture
def run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A cluster is refused: among finished work nothing is left to do on one."""

    def refuse(*_: object) -> None:
        raise AssertionError("choosing among finished work needs no cluster")

    monkeypatch.setattr(pipeline, "_join", refuse)
    assert finished.config.serving is not None
    shutil.copytree(finished.store.root, tmp_path / "store")
    shutil.copytree(finished.folder, tmp_path / "tiny")
    file = write(tmp_path / "tiny.yaml", finished.config.serving.port)
    return Copy(Store(tmp_path / "store"), tmp_path / "tiny", file)


def test_the_searchs_variants_are_members(run: Copy) -> None:
    answer = run.choose("--max-drop", "0.1", "--name", "small-enough", "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = answer.document
    members = {member.partition(" ")[0] for point in found["points"] for member in point["members"]}
    assert members - {"teacher", "small", "thin", "pupil"}
    labels = {point["name"].partition(" ")[0]: point["baseline"] for point in found["points"]}
    assert "merged student" in labels["pupil"]
    spec = run.store.spec("tiny/small-enough")
    assert found["spec"]["digest"] == run.store.ref("tiny/small-enough")
    assert spec.tree.kind == found["points"][found["recommended"]]["kind"]


def test_the_page_has_a_section_until_the_models_change(run: Copy) -> None:
    page, kept = run.folder / "report.html", run.folder / "choose.json"
    answer = run.choose()
    assert answer.code == 0, answer.err
    assert '<section id="choosing">' in page.read_text(encoding="utf-8")
    assert "Ensembles against every single model" in page.read_text(encoding="utf-8")
    store = ("--store", run.store.root)
    assert command("report", "tiny", *store).code == 0
    assert '<section id="choosing">' in page.read_text(encoding="utf-8")
    other = json.loads(kept.read_text(encoding="utf-8"))
    other["models"]["teacher"] = "0" * 64
    kept.write_text(json.dumps(other), encoding="utf-8")
    assert command("report", "tiny", *store).code == 0
    assert '<section id="choosing">' not in page.read_text(encoding="utf-8")
