"""Optimizer and learning rate. The rate is a pure function of the step, so a resumed run needs no state."""

from __future__ import annotations

import math

import torch
from torch import nn

from orchestrator.config.training import Training

_START = 1 / 25  # share of the peak where OneCycle starts, and
_END = 1e-4 / 25  # where it ends: the defaults of torch.optim.lr_scheduler.OneCycleLR


def make_optimizer(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay on matrices and kernels only (no 1-D parameter).

    `set_rate` gives each group its rate.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay, "factor": 1.0},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "factor": settings.bias_lr},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of matrices and kernels; the other group's is that times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def rate(settings: Training, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`.

    `onecycle`: rises by a cosine from 1/25 of the peak, falls by a cosine to almost nothing (Smith and Topin
    2017, https://arxiv.org/abs/1708.07120; the momentum is not cycled). `cosine`: linear warm-up, then a
    cosine to zero (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983). `constant`: linear warm-up,
    then the peak. With `snapshots` the schedule starts anew so often.
    """
    if settings.snapshots is not None:
        steps //= settings.snapshots
        step %= steps
    rising = settings.warmup * steps
    if settings.schedule == "onecycle":
        peak = max(rising - 1, 0.0)
        if step <= peak:
            return settings.lr * _cosine(_START, 1.0, step / peak if peak else 1.0)
        return settings.lr * _cosine(1.0, _END, (step - peak) / max(steps - 1 - peak, 1e-12))
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * _cosine(1.0, 0.0, (step - rising) / max(steps - rising, 1e-12))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
