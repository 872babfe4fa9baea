"""The report written again from a run's folder, without data, store or cluster."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.pipeline.reporting import _with_choice
from orchestrator.pipeline.run import _served_before
from tests.pipeline.command import command
from tests.search import fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run `digits` beside the store that is named in each command."""
    made = tmp_path / "digits"
    made.mkdir()
    return made


def leave(folder: Path, summary: dict[str, Any]) -> None:
    source = {"summary": summary, "details": fake.details()}
    (folder / "report.json").write_text(json.dumps(source), encoding="utf-8")


def test_a_finished_run(folder: Path) -> None:
    leave(folder, fake.summary())
    (folder / "summary.json").write_text(json.dumps(fake.summary()), encoding="utf-8")
    said = command("report", "digits", "--store", folder.parent / "store")
    assert said.code == 0
    assert "teacher" in said.out
    assert "p50-lamp-t4-bf16" in (folder / "report.html").read_text(encoding="utf-8")
    assert not (folder.parent / "store").exists()


def test_a_run_that_ended_after_its_search(folder: Path) -> None:
    chosen = {"name": "p50-lamp-t4-bf16", "digest": "1" * 64, "execution": "aoti", "verdict": {"holds": True}}
    searched = fake.summary()["search"] | {"front": [], "chosen": chosen}
    summary = fake.summary() | {
        "models": {},
        "ensembles": {},
        "serving": {},
        "search": searched,
        "metric": "auroc",
    }
    leave(folder, summary)
    said = command("report", "digits", "--store", folder.parent / "store")
    assert said.code == 0
    assert "the promise holds" in said.out
    assert str(folder / "report.html") in said.out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "AUROC" in page
    assert "The promise holds" in page
    shown = command("report", "digits", "--store", folder.parent / "store", "--json")
    assert shown.document == summary


@pytest.mark.parametrize(
    ("models", "variants", "shown"),
    [
        ({"teacher": "1" * 64}, {}, True),
        ({"teacher": "2" * 64}, {}, False),
        ({"other": "3" * 64}, {}, False),
        ({"teacher": "1" * 64, "other": "3" * 64}, {}, True),
        ({"teacher": "1" * 64}, {"small": "4" * 64}, True),
        ({"teacher": "1" * 64}, {"small": "5" * 64}, False),
    ],
    ids=["same", "trained anew", "not among them", "one more", "with a variant", "a variant made anew"],
)
def test_a_choice_is_shown_beside_the_models_that_it_was_made_among(
    folder: Path, models: dict[str, str], variants: dict[str, str], shown: bool
) -> None:
    choice = {"data": "D", "models": models, "variants": variants}
    (folder / "choose.json").write_text(json.dumps(choice), encoding="utf-8")
    searched = {"data": {"digest": "D"}, "models": {}}
    known: Any = {"models": {"teacher": "1" * 64}}
    if not variants:
        assert ("choosing" in _with_choice(folder, searched, known)) == shown
    whole = {"data": {"digest": "D"}, "models": {"small": {"digest": "4" * 64}}}
    assert ("choosing" in _with_choice(folder, whole, known)) == shown


def test_a_run_of_an_earlier_version_keeps_its_page(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps(fake.summary()), encoding="utf-8")
    (folder / "report.html").write_text("as it was", encoding="utf-8")
    assert command("report", "digits", "--store", folder.parent / "store").code == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == "as it was"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"summary": 1, "details": {}}'])
def test_a_damaged_source_is_one_sentence(folder: Path, text: str) -> None:
    (folder / "report.json").write_text(text, encoding="utf-8")
    said = command("report", "digits", "--store", folder.parent / "store")
    assert "the report's source cannot be read" in said.sentence(said.code)
    assert said.code in (1, 2)


def test_no_run(tmp_path: Path) -> None:
    said = command("report", "digits", "--store", tmp_path / "store")
    assert "no finished run of that name" in said.sentence(2)


def test_figures_of_serving_stay_with_the_ensembles_that_did_not_change(tmp_path: Path) -> None:
    before = {
        "ensembles": {"mix": {"bytes": 1}, "old": {"bytes": 2}},
        "serving": {"mix": {"p50_ms": 1.0}, "old": {}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(before))
    now: Any = SimpleNamespace(ensembles={"new": {"bytes": 3}, "mix": {"bytes": 1}, "old": {"bytes": 9}})
    run: Any = SimpleNamespace(folder=tmp_path)
    assert _served_before(run, now) == {"mix": {"p50_ms": 1.0}}
