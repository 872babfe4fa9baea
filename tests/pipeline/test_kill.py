"""A run that is killed in each of its stages ends like one that nobody disturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.store.store import Store
from tests.pipeline.tiny import ENSEMBLES, MODELS, REQUESTS, Finished, refs, results, write
from tests.pipeline.victim import Victim

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="ends Ray's processes by /proc"),
]

UNNAMED = {"train": "tiny/teacher", "search": "tiny/chosen"}
"""What a stage names in the store at its end."""


def copy_latencies(source: Store, target: Store) -> int:
    """Give a store the latency records of another: measured once, from then on an input."""
    count = 0
    for folder in (source.root / "records").iterdir():
        for record in source.records(folder.name):
            if record["kind"] == "latency":
                target.add_record(folder.name, record)
                count += 1
    return count


def finished_stages(store: Store) -> dict[Path, int]:
    """Files of results and artifacts: a repeated stage would write another (use renews a time alone)."""
    paths = [path for kind in ("stages", "artifacts") for path in (store.root / kind).rglob("*.*")]
    return {path: path.stat().st_ino for path in paths if path.is_file()}


def latencies(store: Store) -> int:
    folder = store.root / "records"
    return sum(r["kind"] == "latency" for path in folder.iterdir() for r in store.records(path.name))


def test_killed_in_each_stage_and_started_again(finished: Finished, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    measured = copy_latencies(finished.store, store)
    assert finished.config.serving is not None
    file = write(tmp_path / "tiny.yaml", finished.config.serving.port)
    last = list(ENSEMBLES)[-1]
    done: dict[Path, int] = {}
    _stopped_by_sigterm(Victim(file, store.root, tmp_path / "cache"))
    for stage, text in (
        ("train", ": epoch 1 of"),
        ("search", "trial 1 of"),
        ("ensemble", "("),
        ("ensemble", f"{last} ("),  # the next thing it does is the evaluation
        ("serve", "starting"),
    ):
        victim = Victim(file, store.root, tmp_path / "cache")
        victim.kill_at(stage, text)
        assert not (tmp_path / "tiny" / "summary.json").exists()
        assert UNNAMED.get(stage) not in refs(store), f"it was killed after {stage}"
        now = finished_stages(store)
        assert done.items() <= now.items(), f"a finished stage was repeated before {stage}"
        done = now
        for digest in store.digests():
            store.verify(digest)
        if stage != "train":
            _trained_once(victim, first=stage == "search")
        if (stage, text) == ("ensemble", "("):
            _tells_of_recoveries(victim)

    victim = Victim(file, store.root, tmp_path / "cache")
    summary = victim.finish()
    assert done == finished_stages(store), "a finished stage was repeated"
    _trained_once(victim, first=False)
    assert refs(store) == refs(finished.store), "digests of models, variants and ensembles"
    assert store.digests() == finished.store.digests()
    found, expected = results(summary), results(finished.summary)
    for part in ("models", "search", "ensembles", "data"):
        assert found[part] == expected[part]
    assert latencies(store) == measured, "no latency was measured again"
    assert {name: (s["requests"], s["errors"]) for name, s in summary["serving"].items()} == dict.fromkeys(
        ENSEMBLES, (REQUESTS, 0)
    )
    assert (tmp_path / "tiny" / "report.html").exists()


def _stopped_by_sigterm(victim: Victim) -> None:
    """What a cluster sends first: it says how to go on, and prints no stack trace."""
    assert victim.terminate_at("train", " starts: ") == 130
    assert "run the same command again to continue" in victim.told
    assert "SIGTERM" not in victim.told
    assert "Traceback" not in victim.told


def _tells_of_recoveries(victim: Victim) -> None:
    """The search's trainings are followed epoch by epoch, like those of the models."""
    assert [line for line in victim.lines if "] search " in line and ": epoch 1: loss" in line], victim.told


def _trained_once(victim: Victim, *, first: bool) -> None:
    """Models that were finished say so; after the search began none trains."""
    if not first:
        assert all(f"{name}: finished before" in victim.told for name in MODELS), victim.told
        assert not [line for line in victim.lines if "] train " in line and ": epoch " in line]
