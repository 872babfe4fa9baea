"""A network that looks at some of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError


class FeatureSubset(nn.Module):
    """Sets all but a drawn share of the scaled features to zero, their mean (Ho 1998, random subspaces,
    https://doi.org/10.1109/34.709601).

    The draw is torch's, so that of the model's seed, and is saved with the weights. Rows stay whole for who
    sends them, and a feature that is not looked at may hold anything.
    """

    chosen: Tensor
    """bool [features]"""

    def __init__(self, signature: Signature, share: float) -> None:
        """Draw the features; one at least.

        Raises:
            ModelError: the rows are images, whose pixels and channels are no features to choose from.
        """
        super().__init__()
        if len(signature.input_shape) != 1:
            raise ModelError(
                "a share of the features needs feature rows; the rows have the shape",
                list(signature.input_shape),
                "leave 'features' out and let members differ by augment, sample or seed",
            )
        (count,) = signature.input_shape
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.randperm(count)[: max(1, round(share * count))]] = True
        self.register_buffer("chosen", chosen)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features] -> the same shape."""
        return torch.where(self.chosen, x, 0.0)
