"""Answers that do not depend on whether an image is mirrored."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mirrored(nn.Module):
    """A network whose answer is the mean over an image and its mirror image: twice the work for each row.

    Test-time augmentation (Krizhevsky et al. 2012, section 4.1) as a part of the model, so that it is
    compressed, measured and served like the rest. Training sees each image once.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs]."""
        if self.training:
            plain: Tensor = self.network(x)
            return plain
        both: Tensor = self.network(torch.cat([x, x.flip(3)]))
        rows = x.shape[0]
        return (both[:rows] + both[rows:]) / 2
