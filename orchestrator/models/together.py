"""Models that are trained in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from orchestrator.config.signature import Task
from orchestrator.models.served import Served


class Together(nn.Module):
    """Models that see the same batches: all of their outputs in training, their mean's in evaluation."""

    def __init__(self, members: Sequence[Served], task: Task) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.preprocess = members[0].preprocess  # first layers that are set from data look for it here
        self._task = task

    def forward(self, x: Tensor) -> Tensor:
        """Raw rows [B, ...] -> in training [B, members * K], member by member; in evaluation [B, K].

        The mean is that of values or probabilities; of the latter the logarithm is given.
        """
        outputs = [member(x) for member in self.members]
        if self.training:
            return torch.cat(outputs, dim=1)
        stacked = torch.stack(outputs).float()
        if self._task == "regression":
            return stacked.mean(0)
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(outputs))


def weights_of_member(weights: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Member `number`'s, from 1, in the `state_dict` of `Together`, by its own names."""
    prefix = f"members.{number - 1}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
