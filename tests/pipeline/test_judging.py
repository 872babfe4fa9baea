"""The run file's variants against their parents, each told, whatever the others say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.ensemble import Member
from orchestrator.config.search import Promise
from orchestrator.config.steps import StaticInt8
from orchestrator.errors import DataError, ModelError
from orchestrator.measure.promise import Verdict
from orchestrator.pipeline.compressing import _job, make_variant
from orchestrator.pipeline.context import open_run
from orchestrator.pipeline.judging import Asked, judged, look, looks
from orchestrator.pipeline.run import read_config
from orchestrator.pipeline.summary import _judged
from orchestrator.progress import Progress
from orchestrator.search.report import variants
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_MLP, put
from tests.pipeline.toys import write


def _asked(digest: str, seen: list[float]) -> Asked:
    def ask(promise: Promise) -> Verdict:
        seen.append(round(promise.confidence, 4))
        return Verdict("holds", 0.0, 0.01, 90, promise.max_drop, promise.confidence, "test", "said")

    return Asked((digest * 64, "eager"), Promise(confidence=0.9), ask)


def test_all_that_was_ever_looked_at_shares_the_confidence(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "store"), list[float]()
    asked = {"a": _asked("a", seen), "b": _asked("b", seen), "twin": _asked("b", seen)}
    assert set(looks(store, {"variants": "toy"}, asked)) == set(asked)
    assert seen == [0.95] * 3
    looks(store, {"variants": "toy"}, {"a": asked["a"]})
    assert seen[3:] == [0.95], "what left the run file was looked at, too"
    looks(store, {"variants": "toy"}, {"a": asked["a"], "c": _asked("c", seen)})
    assert seen[4:] == [round(1 - 0.1 / 3, 4)] * 2
    looks(store, {"variants": "other"}, {"a": asked["a"]})
    assert seen[6:] == [0.9]


def test_the_answers_of_a_series_are_for_good_and_share_the_confidence(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "store"), list[float]()
    first = look(store, {"series": "toy"}, _asked("a", seen))
    for digest in "bcdef":
        look(store, {"series": "toy"}, _asked(digest, seen))
    assert seen[:3] == [0.95, round(1 - 0.1 / 6, 4), round(1 - 0.1 / 12, 4)]
    assert sum(1 - confidence for confidence in seen) < 0.1
    assert look(store, {"series": "toy"}, _asked("a", seen)) == first
    assert len(seen) == 6, "what was looked at before keeps its answer"


@pytest.mark.parametrize("error", [DataError("no row has a label"), ModelError("the metric failed")])
def test_what_cannot_be_answered_is_left_out(error: Exception, tmp_path: Path) -> None:
    def refused(promise: Promise) -> Verdict:  # noqa: ARG001
        raise error

    store = Store(tmp_path / "store")
    asked = Asked(("a" * 64, "eager"), Promise(), refused)
    assert looks(store, {}, {"a": asked}) == {}
    assert look(store, {}, asked) is None


def test_a_variant_of_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    store = Store(tmp_path / "store")
    store.set_ref("made/one", put(store, "one", SMALL_MLP, DIGITS, 0).digest)
    entry: dict[str, Any] = {"parent": "one", "plan": [StaticInt8().plain()], "promise": {"max_drop": 0.5}}
    file = write(tmp_path / "toy.yaml", models={"one": {"ref": "made/one"}}, variants={"small": entry})
    run = open_run(read_config(str(file)), store=str(store.root), progress=Progress(), cluster=lambda: None)
    parent = Member(name="one", digest=store.ref("made/one"))
    digest = make_variant(_job(run, "small", run.config.variants["small"], {"one": parent.digest}))
    members = {"one": parent, "small": Member(name="small", digest=digest, execution="lowered")}
    found = judged(run, members)
    assert judged(run, members) == found, "nothing is measured twice"
    small = found["small"]
    assert (small["parent"], small["verdict"]["status"]) == ("one", "holds")
    assert (small["verdict"]["max_drop"], small["verdict"]["confidence"]) == (0.5, 0.95)
    assert small["gate"]["passes"]
    assert "of the bytes" in small["gate"]["reason"]
    assert small["audit"]["int8"]["share"] == 1
    assert small["audit"]["peak_bytes"] > 0
    assert not small["audit"]["masked_only"]
    summary = {"models": {"one": {}, "small": small}}
    promise, gate = _judged(summary)
    assert "small, of one: on the contract part the promise holds (" in promise
    assert "small: the gate passes it: " in gate
    page = variants.section(summary)
    assert all(
        words in page for words in ("the promise holds", "<strong>passes", "peak memory", "int8_static")
    )
    assert variants.section({"models": {"one": {}}}) == ""
