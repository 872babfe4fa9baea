"""The reliability benchmark: its arithmetic, what it finds of a careless writer, and how parts are merged."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reliability
from benchmarks.output import Ratio
from benchmarks.reliability_power import SCRIPTS, replay
from benchmarks.reliability_serving import Moment, recovered_after
from orchestrator.store.artifacts import MANIFEST, WEIGHTS
from orchestrator.store.store import Store
from tests.store.toys import D1


def test_recovery_is_until_the_last_request_that_was_not_answered_by_all() -> None:
    whole = [Moment(float(at), True) for at in range(10)]
    assert recovered_after(whole, 4.0) == 0.0
    before, after = Moment(3.0, False), Moment(6.5, False)
    assert recovered_after([*whole, before, after], 4.0) == 2.5
    assert math.isnan(recovered_after([*whole, Moment(11.0, False)], 4.0)), "the load ended before"
    assert math.isnan(recovered_after([], 4.0))


def test_a_careful_writer_leaves_no_half_and_a_careless_one_does(tmp_path: Path) -> None:
    def careless(store: Store) -> list[str]:
        folder = store.root / "artifacts" / D1
        os.mkdir(folder.parent)
        os.mkdir(folder)
        for name in (MANIFEST, WEIGHTS):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(descriptor, b"{}")
            os.close(descriptor)
        return [f"artifacts/{D1}/{MANIFEST}"]

    found, calls = replay(SCRIPTS["publish"], tmp_path / "careful")
    assert (found.halves, found.wrong, found.lost) == (0, 0, 0)
    assert found.states >= found.opened > 1
    assert {"fsync", "rename"} <= set(calls)
    found, _ = replay(careless, tmp_path / "careless")
    assert found.halves > 0
    assert found.wrong > 0
    assert found.lost == 1


def test_finished_parts_are_kept_with_what_their_claims_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def works(arguments: Namespace, folder: Path) -> Any:
        calls.append("works")
        assert list(folder.iterdir()) == []
        return [{"kills": 3}], {"damage": Ratio(0, 0, at_most=True, holds=arguments.kills >= 500)}

    def breaks(_: Namespace, __: Path) -> Any:
        calls.append("breaks")
        raise AssertionError("never came to train")

    monkeypatch.setattr(reliability, "PARTS", {"store": works, "nodes": breaks})
    asked = Namespace(work=tmp_path, part=None, kills=3)
    rows, ratios = reliability.measure(asked)
    again, _ = reliability.measure(asked)
    assert calls == ["works", "breaks", "breaks"]
    assert [row["failed"] for row in rows if "failed" in row] == ["AssertionError: never came to train"]
    assert again[1] == {"part": "store", "kills": 3}
    assert not ratios["damage"].met, "three kills prove nothing"
    reliability.measure(Namespace(work=tmp_path, part=["store"], kills=500))
    assert reliability.measure(asked)[1]["damage"].met


def test_every_part_is_told_in_the_results_page() -> None:
    page = Path(__file__).parents[2].joinpath("docs/results/reliability.md").read_text(encoding="utf-8")
    for name in reliability.PARTS:
        assert f"| `{name}` |" in page
