"""Several networks in one graph, with a linear that weighs their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orchestrator.config.model import SideBySide
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body


class Joined(nn.Module):
    """Networks that see the same scaled rows; a head mixes their outputs and starts as the mean.

    The networks are finished: training teaches the head alone, and batch statistics stay.
    """

    def __init__(self, members: Sequence[nn.Module], outputs: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        for parameter in self.members.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Linear(outputs * len(members), outputs)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([torch.eye(outputs) / len(members)] * len(members), dim=1))
            self.head.bias.zero_()

    def train(self, mode: bool = True) -> Joined:
        """The members stay in eval mode."""
        super().train(mode)
        self.members.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scaled rows [B, ...] -> [B, outputs]."""
        out: Tensor = self.head(torch.cat([member(x) for member in self.members], dim=1))
        return out


@make_body.register
def side_by_side(settings: SideBySide, signature: Signature) -> nn.Module:
    """The members as their settings build them, and the head.

    Raises:
        ModelError: a member does not fit the rows.
    """
    return Joined([make_body(member, signature) for member in settings.kwargs.members], signature.outputs)
