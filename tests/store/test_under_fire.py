"""A small number of the kills that `python -m benchmarks.reliability` does, on a disk and on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability_store import on_s3, under_fire
from orchestrator.store import keeping
from orchestrator.store.store import Store


def test_kills_on_a_disk(tmp_path: Path) -> None:
    tally = under_fire(str(tmp_path / "store"), kills=12, seed=3, longest_s=0.8)
    assert (tally.partial, tally.lost_refs, tally.wrong_digests) == ([], [], [])
    assert (tally.kills, tally.published > 0, tally.ref_updates > 0) == (12, True, True)
    assert tally.removed > 0
    assert keeping.damages(Store(tmp_path / "store")) == []


@pytest.mark.slow
def test_kills_on_s3(tmp_path: Path) -> None:
    with on_s3(tmp_path) as location:
        tally = under_fire(location, kills=6, seed=3, longest_s=4.0)
        assert (tally.partial, tally.lost_refs, tally.wrong_digests) == ([], [], [])
        assert (tally.kills, tally.published > 0) == (6, True)
