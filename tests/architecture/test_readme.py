"""README and how-to pages say what is true: commands run, names and paths exist, every setting is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from typer.main import get_command

from deployments.protocol.model import Model, Tensor
from deployments.protocol.rest import Codec
from orchestrator.cli import app
from orchestrator.config.load import parse_yaml, validate
from orchestrator.config.model import BUILT_IN
from orchestrator.config.run import RunConfig
from orchestrator.config.steps import Step
from tests.architecture.modules import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist", "tests", "docs")
COMMANDS = set(getattr(get_command(app), "commands"))  # noqa: B009 - typed as a plain click command


def blocks(text: str, fence: str) -> list[str]:
    """Contents of the fenced blocks that open with exactly this info string."""
    return re.findall(rf"^ *```{re.escape(fence)}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """The text below a second-level heading, up to the next one."""
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.slow
def test_blocks_marked_console_test_run(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    lines = [
        line[2:]
        for block in blocks(README, "console test")
        for line in block.splitlines()
        if line[:2] == "$ "
    ]
    assert lines
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=copy, env=environment | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"


def test_the_command_table_is_the_command_line() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", section(README, "Commands"), re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == COMMANDS


def test_every_command_that_a_page_uses_exists() -> None:
    for page in PAGES:
        used = set(re.findall(r"\borchestrator ([a-z][a-z-]*)\b", "\n".join(code_of(page))))
        assert used <= COMMANDS, f"{page.name}: {sorted(used - COMMANDS)}"


def test_every_option_that_a_page_uses_exists() -> None:
    commands = getattr(get_command(app), "commands")  # noqa: B009
    for page in PAGES:
        for name, rest in re.findall(r"\borchestrator ([a-z][a-z-]*)\b([^\n|;]*)", "\n".join(code_of(page))):
            known = {
                found
                for parameter in commands[name].params
                for found in (*parameter.opts, *parameter.secondary_opts)
            }
            used = set(re.findall(r"(?<!\S)--[a-z0-9-]+", rest)) - {"--help"}
            assert used <= known, f"{page.name}: orchestrator {name} has no {sorted(used - known)}"


def code_of(page: Path) -> list[str]:
    """Console blocks and inline code of a page."""
    text = page.read_text(encoding="utf-8")
    fenced = [*blocks(text, "console"), *blocks(text, "console test")]
    return [*fenced, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]


def test_every_path_in_the_tree_exists() -> None:
    (tree,) = blocks(section(README, "The repository"), "text")
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        path = ROOT / (folder + name if line.startswith(" ") else name)
        assert path.is_dir() if name.endswith("/") else path.is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize(
    ("page", "title"), [("README.md", "The run file"), ("docs/run-file.md", "A whole file")]
)
def test_the_run_file_of_a_page_is_valid(page: str, title: str) -> None:
    (text,) = blocks(section((ROOT / page).read_text(encoding="utf-8"), title), "yaml")
    assert set(validate(RunConfig, parse_yaml(text, page), page).ensembles) == {"average", "mix", "cascade"}


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1_350


def settings_in(annotation: Any, seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """All settings classes that an annotation leads to."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        for part in get_args(annotation):
            settings_in(part, seen)
    elif annotation not in seen:
        seen.add(annotation)
        for field in annotation.model_fields.values():
            settings_in(field.annotation, seen)
    return seen


def test_the_run_file_page_has_every_key_and_kind() -> None:
    page = (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8")
    top = set(re.findall(r"^\| `([a-z_]+)` \|", page.split("\n## ", 1)[0], re.MULTILINE))
    assert top == set(RunConfig.model_fields)
    words = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.findall(r"[a-z_0-9]+", code)}
    classes = settings_in(RunConfig, set())
    keys = {name for found in classes for name in found.model_fields}
    kinds = {
        value
        for found in settings_in(Step, classes)
        if "kind" in found.model_fields
        for value in get_args(found.model_fields["kind"].annotation)
    }
    assert len(kinds) > 15
    missing = sorted((keys | kinds | set(BUILT_IN)) - words)
    assert not missing, f"docs/run-file.md does not name {missing}"


def test_the_example_request_is_a_row_of_the_digits() -> None:
    body = (ROOT / "examples" / "digit.json").read_bytes()
    model = Model("mix", "1", Tensor("input", "UINT8", (-1, 1, 8, 8)), (Tensor("label", "INT64", (-1,)),))
    (row,) = Codec(model).decode(body, None).rows
    images = pq.read_table(ROOT / "orchestrator" / "data" / "embedded" / "digits.parquet")["image"]
    assert json.loads(body)["inputs"][0]["data"] in images.combine_chunks().storage.to_pylist()
    assert row.shape == (1, 8, 8)
