"""A whole tiny run: what it leaves behind, and that a second one repeats nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.pipeline import run as pipeline
from orchestrator.pipeline.reporting import GOES_ON
from orchestrator.pipeline.reproducing import reproduce
from orchestrator.pipeline.run import execute
from tests.pipeline.command import command
from tests.pipeline.tiny import ENSEMBLES, MODELS, REQUESTS, TRIALS, VARIANTS, Finished, refs, results, write

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
QUALITY = {"metric", "accuracy", "accuracy_ci", "nll", "ece"}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def _check_quality(figures: dict[str, Any]) -> None:
    assert figures.keys() >= QUALITY
    metric = figures["metric"]
    assert metric["name"] == "accuracy"
    assert metric["value"] == figures["accuracy"]
    low, high = metric["ci"]
    assert 0 <= low <= metric["value"] <= high <= 1


def _check_latency(figures: dict[str, Any]) -> None:
    assert figures.keys() == {"batch", "threads", "execution", "median", "ci", "p95"}
    assert (figures["batch"], figures["threads"], figures["execution"]) == (32, 1, "eager")
    assert 0 < figures["ci"][0] <= figures["median"] <= figures["ci"][1]


def test_the_summary_is_as_designed(finished: Finished) -> None:
    summary = finished.summary
    assert json.loads((finished.folder / "summary.json").read_text()) == summary
    assert summary.keys() >= {"schema", "run", "seconds", "machine", "data", "models", "search"}
    assert (summary["schema"], summary["run"], summary["seed"]) == (1, "tiny", 3)
    assert summary["data"]["digest"]
    assert sum(summary["data"]["rows"].values()) == 600
    assert all(math.isfinite(number) for number in _numbers(summary))


def test_models(finished: Finished) -> None:
    assert tuple(finished.summary["models"]) == (*MODELS, *VARIANTS)
    for name, figures in finished.summary["models"].items():
        _check_quality(figures)
        _check_latency(figures["latency_ms"])
        assert figures["ref"] == f"tiny/{name}"
        assert finished.store.ref(figures["ref"]) == figures["digest"]
        assert figures["bytes"] == finished.store.artifact_bytes(figures["digest"])
        assert figures["params"] > 0


def test_a_variant_by_hand(finished: Finished) -> None:
    store, figures = finished.store, finished.summary["models"]["thin"]
    manifest = store.manifest(figures["digest"])
    assert [step.kind for step in manifest.plan] == ["prune_channels", "recover"]
    assert manifest.parents == (store.ref("tiny/teacher"),)
    assert figures["params"] < finished.summary["models"]["teacher"]["params"]


def test_a_student_stands_beside_its_ensemble(finished: Finished) -> None:
    """It learns from `mix` before `average`, which stands above that, is fitted with it as a member."""
    store, summary = finished.store, finished.summary
    manifest = store.manifest(summary["models"]["pupil"]["digest"])
    assert manifest.parents == (store.ref("tiny/small"), store.ref("tiny/mix"))
    found = {name: figures["students"] for name, figures in summary["ensembles"].items()}
    assert list(found["mix"]) == ["pupil"]
    assert (found["average"], found["cascade"]) == ({}, {})
    figures = found["mix"]["pupil"]
    drop = summary["ensembles"]["mix"]["accuracy"] - summary["models"]["pupil"]["accuracy"]
    assert figures["drop"]["value"] == pytest.approx(drop)
    assert figures["drop"]["ci"][0] <= drop <= figures["drop"]["ci"][1]
    assert 0 < figures["agreement"] <= 1
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "student of mix" in page
    assert "As one model" in page


def test_search(finished: Finished) -> None:
    found = finished.summary["search"]
    assert found["trials"] == TRIALS
    assert found["front"]
    for point in [*found["front"], found["chosen"]]:
        _check_quality(point)
        _check_latency(point["latency_ms"])
        assert finished.store.has(point["digest"])
        assert point["name"]
    assert found["chosen"]["verdict"]["holds"] is True
    assert found["chosen"]["digest"] == finished.store.ref("tiny/chosen")
    assert found["front"][0]["digest"] == finished.store.ref("tiny/fastest")
    assert "promise holds" in found["reason"]
    spent = found["spent"]
    assert 0 < spent["paused_s"] < spent["seconds"]
    assert "Trials paused" in (finished.folder / "report.html").read_text(encoding="utf-8")


def test_few_looks_at_the_contract_part(finished: Finished) -> None:
    store, search = finished.store, finished.config.search
    records = [(digest, record) for digest in store.digests() for record in store.records(digest)]
    looks = [(digest, record) for digest, record in records if record.get("kind") == "look"]
    assert search is not None
    assert 1 <= len(looks) <= search.promise.looks
    assert len({(digest, record["execution"]) for digest, record in looks}) == len(looks)
    assert {record["parent"] for _, record in looks} == {store.ref("tiny/teacher")}
    assert store.ref("tiny/chosen") in {digest for digest, _ in looks}


def test_ensembles(finished: Finished) -> None:
    found = finished.summary["ensembles"]
    assert {name: figures["kind"] for name, figures in found.items()} == ENSEMBLES
    for name, figures in found.items():
        _check_quality(figures)
        _check_latency(figures["latency_ms"])
        assert finished.store.spec(f"tiny/{name}").name == name
        assert figures["bytes"] > 0
        assert 0 < figures["mean_cost"] <= 1
        members = figures["diversity"]["members"]
        contributions = figures["contributions"]["members"]
        assert [one["name"] for one in contributions] == members
        # The shares add up to what the ensemble is worth beyond chance among ten classes.
        shares = sum(one["accuracy"]["shapley"] for one in contributions)
        assert shares == pytest.approx(figures["accuracy"] - 0.1)
        assert figures["uncertainty"]["elsewhere"].keys() == {"uniform_noise", "shuffled_pixels"}
    assert found["average"]["mean_cost"] == 1


def test_serving(finished: Finished) -> None:
    found = finished.summary["serving"]
    assert found.keys() == ENSEMBLES.keys()
    serving = finished.config.serving
    assert serving is not None
    for name, figures in found.items():
        assert figures["url"] == f"http://127.0.0.1:{serving.port}/v2/models/{name}"
        assert (figures["requests"], figures["errors"]) == (REQUESTS, 0)
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert figures["per_s"] > 0
        assert 0 <= figures["accuracy"] <= 1


def test_the_report_is_one_file_about_this_run(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    for name in (*MODELS, *ENSEMBLES, finished.summary["search"]["chosen"]["name"]):
        assert name in page
    assert page.count('class="ensemble"') == len(ENSEMBLES)
    assert page.count('src="data:image/png;base64,') == 3 * len(ENSEMBLES)


def test_the_report_knows_each_trial(finished: Finished) -> None:
    source = json.loads((finished.folder / "report.json").read_text(encoding="utf-8"))
    (target,) = source["details"]["targets"].values()
    assert [trial["number"] for trial in target["trials"]] == list(range(TRIALS))
    assert target["parent"]["name"] == "teacher"
    chosen = next(trial for trial in target["trials"] if trial["name"] == target["chosen"])
    assert chosen["verdict"]["holds"]
    assert chosen["audit"]["macs"] > 0
    for trial in target["trials"]:
        low, high = trial["metric_ci"]
        assert 0 <= low <= trial["metric"] <= high <= 1
        pruned = "prune_channels.amount" in trial["config"]
        assert ("prune_channels" in [step["kind"] for step in trial["plan"]]) == pruned


def test_report_writes_the_page_again_and_prints_the_table(finished: Finished) -> None:
    page = finished.folder / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    said = command("report", "tiny", "--store", finished.store.root)
    assert page.read_text(encoding="utf-8") == before
    assert said.code == 0
    for name in (*MODELS, *ENSEMBLES, "chosen", str(finished.folder / "report.html")):
        assert name in said.out


def test_what_was_trained_is_sound(finished: Finished) -> None:
    listed = command("models", "tiny", "--verify", "--json", "--store", finished.store.root)
    assert listed.code == 0
    assert {row["ref"] for row in listed.document} == set(refs(finished.store))
    assert all(row["state"] == "ok" for row in listed.document)


def test_what_the_run_made_reproduces(finished: Finished) -> None:
    for name in ("chosen", "thin"):
        found = reproduce(f"tiny/{name}", store=str(finished.store.root), tolerance=2.0)
        assert found.reproduces, found
        status = {check.name.split()[0]: check.status for check in found.checks}
        assert (status["digest"], status["accuracy"]) == ("holds", "holds")
        assert status["latency"] != "unknown"


def test_a_model_trained_again_is_the_same(finished: Finished, tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", port=1)
    found = reproduce(
        "tiny/small", store=str(finished.store.root), config=str(file), tolerance=2.0, train_again=True
    )
    assert found.checks[0].status == "holds", found
    assert found.reproduces, found


def test_again_nothing_is_repeated_and_all_is_equal(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def never() -> None:
        raise AssertionError("Ray was started")

    def files() -> dict[Path, int]:  # what is written anew is another file; use renews a time alone
        kept = [path for path in finished.store.root.rglob("*") if path.is_file()]
        return {path: path.stat().st_ino for path in kept if "leases" not in path.parts}

    monkeypatch.setattr(pipeline, "connected", never)
    before, names = files(), refs(finished.store)
    again = execute(finished.config, until="evaluate", store=str(finished.store.root))
    assert results(again) == results(finished.summary)
    assert refs(finished.store) == names
    assert files() == before
    said = capfd.readouterr().err
    assert all(f"{name}: finished before" in said for name in MODELS)
    assert "epoch" not in said
    for until, key in (("train", "models"), ("search", "chosen"), ("ensemble", "ensembles")):
        part = execute(finished.config, until=until, store=str(finished.store.root))
        assert part["models"] == {name: names[f"tiny/{name}"] for name in MODELS}
        assert part[key]


def test_a_search_after_a_whole_run_keeps_what_the_page_has_of_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "connected", lambda: pytest.fail("asked for a cluster"))
    shutil.copytree(finished.store.root.parent, tmp_path / "copy")
    folder, store = tmp_path / "copy" / "tiny", str(tmp_path / "copy" / "store")
    whole = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(whole["summary"]["ensembles"]) == set(ENSEMBLES)
    # Not lost by a search before this one either.
    assert set(whole["details"]["examples"]) == set(ENSEMBLES)

    def searched(trials: int) -> dict[str, Any]:
        search = finished.config.search
        assert search is not None
        changed = search.model_copy(update={"trials": trials})
        execute(finished.config.model_copy(update={"search": changed}), until="search", store=store)
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert all(f"<td>{ensemble}" in page for ensemble in ENSEMBLES)
        assert (GOES_ON.split(":")[0] in page) == (trials < TRIALS)
        found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return found

    # Its page after the same trials says the same; with fewer it says that the rest is of another search.
    same = searched(TRIALS)
    assert same == whole
    other = searched(TRIALS - 2)
    assert other["summary"]["search"]["trials"] == TRIALS - 2
    (target,) = other["details"]["targets"].values()
    assert len(target["trials"]) == TRIALS - 2
    assert other["details"]["notes"] == [GOES_ON]
    assert other["details"]["examples"] == whole["details"]["examples"]
    for key in ("models", "ensembles", "serving"):
        assert other["summary"][key] == whole["summary"][key]
    front = [point["digest"] for point in other["summary"]["search"]["front"]]
    assert set(front) <= {point["digest"] for point in whole["summary"]["search"]["front"]}


def test_a_changed_model_is_refused_under_the_same_name(finished: Finished) -> None:
    models = dict(finished.config.models)
    training = models["small"].training.model_copy(update={"epochs": 1})
    models["small"] = models["small"].model_copy(update={"training": training})
    changed = finished.config.model_copy(update={"models": models})
    with pytest.raises(
        ConfigError, match=r"training\.epochs: 2 -> 1\. take another run name, or pass --fresh"
    ):
        execute(changed, until="train", store=str(finished.store.root))


def test_an_unknown_stage(finished: Finished) -> None:
    with pytest.raises(ConfigError, match="no such stage: everything"):
        execute(finished.config, until="everything")
