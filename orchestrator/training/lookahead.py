"""Slow weights: every few steps the weights go back some of the way that they came."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from orchestrator.config.training import Lookahead


class SlowWeights:
    """Lookahead: Zhang et al. 2019 (https://arxiv.org/abs/1907.08610).

    As in Jordan 2024 (https://arxiv.org/abs/2404.00498), section 3.4, the slow weights' share rises with the
    cube of the training's progress, and batch statistics take part. The weights are the slow ones after each
    pull, and an epoch ends with one, so nothing needs saving.
    """

    def __init__(self, module: nn.Module, settings: Lookahead, project: Callable[[], None]) -> None:
        """Start from the module's weights.

        Args:
            module: as it is trained, on its device.
            settings: how often and how far.
            project: makes true again what is asked of the weights; called after each pull.
        """
        self._settings, self._project = settings, project
        self._fast = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
        self._slow = [tensor.clone() for tensor in self._fast]

    def pull(self, step: int, epoch_step: int, epoch_steps: int, steps: int) -> None:
        """After step `step` of `steps` (step `epoch_step` of `epoch_steps` in its epoch)."""
        if (epoch_step + 1) % self._settings.every and epoch_step + 1 != epoch_steps:
            return
        share = self._settings.share * ((step + 1) / steps) ** 3
        with torch.no_grad():
            for slow, fast in zip(self._slow, self._fast, strict=True):
                fast.lerp_(slow, share)
            self._project()
            for slow, fast in zip(self._slow, self._fast, strict=True):
                slow.copy_(fast)
