"""Drawn rows: pure, of the right size, and the only ones that a model learns from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.config.training import Sample
from orchestrator.data.dataset import Part
from orchestrator.training.batches import Rows
from orchestrator.training.sampling import drawn_rows, out_of_bag
from tests.training.toy import FEATURES, QUICK, digest, module_of, part, run

BOOTSTRAP = Sample()
PART = Sample(share=0.6, replacement=False)


def test_a_bootstrap_leaves_a_third_out_of_the_bag() -> None:
    drawn = drawn_rows(10_000, BOOTSTRAP, seed=1)
    outside = out_of_bag(10_000, BOOTSTRAP, seed=1)
    assert len(drawn) == 10_000
    assert len(outside) == pytest.approx(10_000 / np.e, rel=0.02)
    np.testing.assert_array_equal(np.union1d(drawn, outside), np.arange(10_000))
    assert not np.intersect1d(drawn, outside).size


def test_without_replacement_every_row_stands_once() -> None:
    drawn = drawn_rows(70, PART, seed=1)
    assert len(drawn) == len(set(drawn)) == 42
    assert len(out_of_bag(70, PART, seed=1)) == 28


def test_the_draw_follows_from_seed_and_rows_alone() -> None:
    np.testing.assert_array_equal(drawn_rows(70, BOOTSTRAP, 5), drawn_rows(70, BOOTSTRAP, 5))
    bags = [set(drawn_rows(200, BOOTSTRAP, seed)) for seed in range(4)]
    for one in bags:
        for other in bags:
            # Two bags share 1 - 2 / e + 1 / e^2 = 0.40 of all rows.
            assert one == other or len(one & other) / 200 == pytest.approx(0.40, abs=0.1)
    np.testing.assert_array_equal(drawn_rows(70, None, 5), np.arange(70))
    assert not out_of_bag(70, None, 5).size


@pytest.mark.parametrize("sample", [BOOTSTRAP, PART], ids=["bootstrap", "share"])
def test_every_epoch_shows_the_drawn_rows_as_often_as_drawn(sample: Sample) -> None:
    rows = part(FEATURES)
    batches = Rows(rows, QUICK.augment, 3, 16, None, drawn_rows(70, sample, 3))
    first, second = (
        torch.cat([batch.inputs for batch in batches.epoch(epoch, torch.device("cpu"), False, 0, 1)])
        for epoch in range(2)
    )
    expected = torch.from_numpy(rows.inputs[drawn_rows(70, sample, 3)])
    assert not torch.equal(first, second)
    for seen in (first, second):
        assert torch.equal(seen.sort(dim=0).values, expected.sort(dim=0).values)


def test_rows_outside_the_bag_change_nothing() -> None:
    settings = QUICK.model_copy(update={"sample": BOOTSTRAP})
    rows, outside = part(FEATURES), out_of_bag(70, BOOTSTRAP, seed=3)

    def with_wrong(positions: NDArray[np.int64]) -> Part:
        targets = rows.targets.copy()
        targets[positions] = (targets[positions] + 1) % 3
        return replace(rows, targets=targets)

    def trained(train: Part) -> str:
        return digest(run(module_of(FEATURES), FEATURES, settings, train=train)[1].weights)

    assert trained(with_wrong(outside)) == trained(rows)
    assert trained(with_wrong(drawn_rows(70, BOOTSTRAP, seed=3)[:1])) != trained(rows)


def test_a_teacher_speaks_of_the_rows_that_were_drawn() -> None:
    rows = part(FEATURES)
    batches = Rows(rows, QUICK.augment, 3, 16, rows.inputs[:, :3], drawn_rows(70, BOOTSTRAP, 3))
    for batch in batches.epoch(0, torch.device("cpu"), False, 0, 1):
        assert batch.teacher is not None
        assert torch.equal(batch.teacher, batch.inputs[:, :3])
