"""Slow weights: how far they pull, and that a stopped run goes on bit-equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config.constraints import Sparsify
from orchestrator.config.measure import Metric
from orchestrator.config.training import Lookahead
from orchestrator.models.base import weights_of
from orchestrator.training.lookahead import SlowWeights
from orchestrator.training.loop import train
from orchestrator.training.state import TrainState
from tests.training.toy import IMAGES, QUICK, digest, module_of, part, run

SETTINGS = QUICK.model_copy(update={"lookahead": Lookahead(every=2, share=0.5)})


def test_a_pull_goes_back_the_share_that_progress_asks_for() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    slow = SlowWeights(module, Lookahead(every=2, share=0.5), lambda: None)
    nn.init.ones_(module.weight)
    slow.pull(step=0, epoch_step=0, epoch_steps=4, steps=4)
    assert module.weight.item() == 1.0  # not its turn
    slow.pull(step=1, epoch_step=1, epoch_steps=4, steps=4)
    share = 0.5 * (2 / 4) ** 3
    assert module.weight.item() == pytest.approx(1 - share)


def test_an_epoch_ends_with_a_pull_and_batch_statistics_take_part() -> None:
    module = nn.BatchNorm1d(1)
    slow = SlowWeights(module, Lookahead(every=100, share=0.5), lambda: None)
    assert module.running_mean is not None
    module.running_mean.fill_(1.0)
    slow.pull(step=2, epoch_step=2, epoch_steps=3, steps=3)
    assert module.running_mean.item() == pytest.approx(0.5)


def test_it_learns_and_a_stopped_run_goes_on_bit_equal() -> None:
    reports, whole = run(module_of(IMAGES), IMAGES, SETTINGS)
    assert reports[-1].metric >= 0.8
    _, plain = run(module_of(IMAGES), IMAGES, QUICK)
    assert digest(whole.weights) != digest(plain.weights)
    state = TrainState()
    options: dict[str, Any] = {"signature": IMAGES, "metric": Metric(), "seed": 3, "threads": 1}
    for report in train(
        module_of(IMAGES), part(IMAGES), part(IMAGES, 50, seed=1), SETTINGS, state=state, **options
    ):
        if report.epoch == 1:
            break
    list(
        train(module_of(IMAGES, 9), part(IMAGES), part(IMAGES, 50, seed=1), SETTINGS, state=state, **options)
    )
    assert digest(state.weights) == digest(whole.weights)


def test_with_the_constraints_the_zeros_stay() -> None:
    module = module_of(IMAGES)
    name, weight = next((n, p) for n, p in module.named_parameters() if p.ndim == 4)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    run(module, IMAGES, SETTINGS, masks={name: mask})
    assert not module.get_parameter(name)[~mask].any()


def test_with_gradual_pruning_the_zeros_are_as_many_as_asked_and_a_stopped_run_goes_on_bit_equal() -> None:
    settings = SETTINGS.model_copy(update={"sparsify": Sparsify(amount=0.6, every=2)})
    module = module_of(IMAGES)
    _, whole = run(module, IMAGES, settings)
    weights = list(weights_of(module).values())
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.6, abs=0.005)
    state = TrainState()
    options: dict[str, Any] = {"signature": IMAGES, "metric": Metric(), "seed": 3, "threads": 1}
    for start in (module_of(IMAGES), module_of(IMAGES, 9)):
        for report in train(start, part(IMAGES), part(IMAGES, 50, seed=1), settings, state=state, **options):
            if report.epoch == 1:
                break
    assert digest(state.weights) == digest(whole.weights)
