"""Several networks in one graph, with a linear that weighs their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from orchestrator.config.model import SideBySide
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body


class Joined(nn.Module):
    """Networks that see the same scaled rows; a head mixes their outputs and starts as the mean.

    The networks are finished, so batch statistics stay; `merge` trains the head alone.
    """

    def __init__(self, members: Sequence[nn.Module], outputs: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._exact = [
            any(getattr(part, "takes_float32", False) for part in member.modules()) for member in members
        ]
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
        out: Tensor = self.head(torch.cat([member(rows) for member, rows in self._rows(x)], dim=1))
        return out

    def _rows(self, x: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Each member with its rows: beside one that takes float32, those of the others come so, too."""
        rounded = getattr(self.head, "weight", None) is not None and self.head.weight.dtype is torch.bfloat16
        for member, exact in zip(self.members, self._exact, strict=True):
            cast = rounded and not exact and x.is_floating_point()
            yield member, x.to(torch.bfloat16) if cast else x


@make_body.register
def side_by_side(settings: SideBySide, signature: Signature) -> nn.Module:
    """The members as their settings build them, and the head.

    Raises:
        ModelError: a member does not fit the rows.
    """
    return Joined([make_body(member, signature) for member in settings.kwargs.members], signature.outputs)
