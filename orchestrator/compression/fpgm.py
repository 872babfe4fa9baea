"""Criterion `fpgm`: how far each filter is from all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_pruning import importance
from torch_pruning.pruner import function

_OUTPUTS = (function.prune_conv_out_channels, function.prune_linear_out_channels)
_INPUTS = (function.prune_conv_in_channels, function.prune_linear_in_channels)


class GeometricMedian(importance.FPGMImportance):  # type: ignore[misc]
    """Sums of distances between filters: the one nearest to all others can best be spared.

    He et al. 2019 (https://arxiv.org/abs/1811.00250), equation 6. torch-pruning 1.6 takes the distances
    between squared weights, for which a filter and its negative are one.
    """

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Scores [width] of a group's channels; None where no layer has filters."""
        scores, places = [], []
        for index, (dep, channels) in enumerate(group):
            if dep.pruning_fn not in _OUTPUTS + _INPUTS:
                continue
            layer, outputs = dep.layer, dep.pruning_fn in _OUTPUTS
            first = outputs != getattr(layer, "transposed", False)  # whether filters are along the first axis
            filters = (layer.weight if first else layer.weight.transpose(0, 1)).flatten(1)
            if not outputs:
                # A grouped convolution's weight has the inputs of one group.
                filters = filters.repeat(getattr(layer, "groups", 1), 1)
            filters = filters[channels]
            exact = "donot_use_mm_for_euclid_dist"
            scores.append(torch.cdist(filters, filters, compute_mode=exact).sum(0))
            places.append(group[index].root_idxs)
        return self._normalize(self._reduce(scores, places), self.normalizer) if scores else None
