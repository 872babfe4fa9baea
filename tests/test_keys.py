"""The file of API keys, and the command that writes it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import keys
from orchestrator.cli import app
from orchestrator.errors import ConfigError
from tests.deployments.toys import open_store


def test_a_key_is_found_and_kept_as_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    ann, root = keys.add(path, "ann", "data"), keys.add(path, "root", "admin")
    assert len(ann) == 43  # 32 random bytes in base64
    text = path.read_text()
    assert ann not in text
    assert text.splitlines()[0] == f"ann:data:{hashlib.sha256(ann.encode()).hexdigest()}"
    assert path.stat().st_mode & 0o077 == 0
    found = keys.read(path)
    assert [keys.find(found, token) for token in (ann, root, "other")] == [*found, None]
    assert [key.allows(scope) for key in found for scope in keys.SCOPES] == [True, False, True, True]


def test_names_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys.add(path, "ann", "data")
    with pytest.raises(ConfigError, match="a key of that name exists: ann"):
        keys.add(path, "ann", "admin")
    with pytest.raises(ConfigError, match="a key's name may have"):
        keys.add(path, "a:b", "data")
    with pytest.raises(ConfigError, match=r"no key of that name: bob. keys are: ann"):
        keys.revoke(path, "bob")


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for number in range(8):
        keys.add(path, f"old{number}", "data")

    def change(number: int) -> None:
        keys.add(path, f"new{number}", "data")
        keys.revoke(path, f"old{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    assert sorted(key.name for key in keys.read(path)) == [f"new{number}" for number in range(8)]


@pytest.mark.parametrize("line", ["ann:data:12", "ann:root:" + "a" * 64, "token", "a b:data:" + "a" * 64])
def test_a_line_that_is_no_key_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"is not name:scope:sha256: .*keys:2"):
        keys.read(path)


def test_the_command_adds_lists_and_revokes(tmp_path: Path) -> None:
    path, runner = tmp_path / "keys", CliRunner()

    def run(*arguments: str) -> str:
        done = runner.invoke(app, ["keys", *arguments, "--file", str(path)])
        assert done.exit_code == 0, done.output
        return done.stdout

    token = run("add", "ann").strip()
    assert json.loads(run("add", "root", "--scope", "admin", "--json"))["scope"] == "admin"
    assert run("list").split() == ["ann", "data", "root", "admin"]
    assert keys.find(keys.read(path), token) == keys.read(path)[0]
    assert json.loads(run("revoke", "ann", "--json")) == [{"name": "root", "scope": "admin"}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add"], "takes a name"),
        (["list", "ann"], "takes no name"),
        (["revoke", "ann"], "cannot be read"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["keys", *arguments, "--file", str(tmp_path / "keys")])
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines: give access.keys"),
        (["--tls-key", "key.pem"], "goes with the other"),
    ],
)
def test_serve_refuses_an_open_door(tmp_path: Path, arguments: list[str], says: str) -> None:
    store, specs = open_store(tmp_path)
    store.set_ref("toys/mix", store.put_spec(specs[2]))
    done = CliRunner().invoke(app, ["serve", "toys", "--store", str(store.root), *arguments])
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split())
