"""Optimizers and schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.config.training import Training
from orchestrator.training.optim import make_optimizer, rate, set_rate


def test_onecycle_is_torchs() -> None:
    steps, settings = 50, Training(lr=0.3, warmup=0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    for step in range(steps):
        assert rate(settings, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_cosine_rises_in_the_warm_up_and_falls_to_almost_zero() -> None:
    settings = Training(lr=1.0, schedule="cosine", warmup=0.25)
    rates = [rate(settings, step, 100) for step in range(100)]
    assert rates[:25] == sorted(rates[:25])
    assert rates[25] == max(rates) == 1.0
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    settings = Training(lr=1.0, schedule="constant", warmup=0.25)
    rates = [rate(settings, step, 100) for step in range(100)]
    assert rates[:25] == sorted(set(rates[:25]))
    assert rates[25:] == [1.0] * 75


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_short_runs_have_a_rate(schedule: str, steps: int, warmup: float) -> None:
    settings = Training.model_validate({"schedule": schedule, "warmup": warmup, "lr": 0.1})
    assert all(0 < rate(settings, step, steps) <= 0.1 + 1e-12 for step in range(steps))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_matrices_decay(optimizer: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)
    settings = Training.model_validate({"optimizer": optimizer, "weight_decay": 0.1})
    made = make_optimizer(module, settings)
    decay = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decay == {
        id(parameter): 0.1 if parameter.ndim > 1 else 0.0
        for parameter in module.parameters()
        if parameter.requires_grad
    }
    assert isinstance(made, torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW)


def test_biases_have_a_rate_of_their_own() -> None:
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, Training(lr=0.1, bias_lr=8.0))
    set_rate(optimizer, 0.05)
    rates = {group["params"][0].ndim: group["lr"] for group in optimizer.param_groups}
    assert rates == {2: pytest.approx(0.05), 1: pytest.approx(0.4)}
