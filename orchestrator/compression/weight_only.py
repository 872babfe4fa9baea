"""Steps that keep weights as small integers and compute in float."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.step import Context, State, apply_step, copy_of, stays_float
from orchestrator.config.steps import WeightOnlyInt4, WeightOnlyInt8
from orchestrator.errors import CompressionError
from orchestrator.models.base import tied_to_float
from orchestrator.runtime import weight_only
from orchestrator.runtime.int8 import check_names, is_within
from orchestrator.training.limits import least_error

BITS = {"int8_weight_only": 8, "int4_weight_only": 4}
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase)
DEFAULT_GROUPS = {"int8_weight_only": WeightOnlyInt8().group, "int4_weight_only": WeightOnlyInt4().group}


@apply_step.register(WeightOnlyInt8)
@apply_step.register(WeightOnlyInt4)
def quantize_weights(step: WeightOnlyInt8 | WeightOnlyInt4, state: State, context: Context) -> State:  # noqa: ARG001
    """Round weights to symmetric integers, a scale for each group of a row.

    Weights alone, a scale for each output channel: Krishnamoorthi 2018 (https://arxiv.org/abs/1806.08342),
    section 3.1.1; for groups of a row: Shen et al. 2020 (https://arxiv.org/abs/1909.05840), as torchao's
    Int8WeightOnlyConfig and Int4WeightOnlyConfig have them. The scale is that of the least squared error (as
    in `clip`), which matters with four bits. What stays float is listed with the reason.

    Raises:
        CompressionError: there is no convolution, linear or embedding that would become smaller, or no layer
            to keep in float of a name.
    """
    bits, keep = BITS[step.kind], step.keep_float or ()
    module = copy_of(state.module)
    groups, left = groups_of(module, step.group, bits, keep)
    weight_only.convert(module, groups, bits)
    # All before the first is filled: another may share its weight, and then has equal codes.
    weights = {name: module.get_parameter(f"{name}.weight").detach() for name in groups}
    codes = {name: rounded_codes(weight, groups[name], bits) for name, weight in weights.items()}
    for name, found in codes.items():
        weight_only.fill(module.get_submodule(name), *found)
    return state.after(step, module, {"groups": groups} | stays_float(keep, left))


def groups_of(
    module: nn.Module, group: int | None, bits: int, keep_float: Collection[str] = ()
) -> tuple[dict[str, int], dict[str, str]]:
    """Layers that become smaller, each with how many weights of a row share a scale, and the others with the
    reason; those of `keep_float` are in neither.

    Raises:
        CompressionError: there is none, or no layer to keep in float of a name.
    """
    check_names(module, keep_float)
    found, left = dict[str, int](), dict[str, str]()
    known = weight_only.layers(module)
    for name, layer in module.named_modules():
        if not isinstance(layer, _WEIGHTED) or is_within(name, keep_float):
            continue
        if name not in known:
            left[name] = f"there is no weight-only form of {type(layer).__name__}"
            continue
        assert isinstance(layer.weight, Tensor)
        columns = layer.weight.flatten(1).shape[1]
        own = min(group or columns, columns)
        packed = -(-columns // own) * (own * bits / 8 + weight_only.SCALE_TYPE.itemsize)
        if packed < columns * layer.weight.element_size():
            found[name] = own
        else:
            left[name] = "integers and scales would take as many bytes"
    left |= tied_to_float(module, found)
    found = {name: own for name, own in found.items() if name not in left}
    if not found:
        raise CompressionError(
            "no convolution, linear or embedding would become smaller",
            "; ".join(f"{name}: {why}" for name, why in left.items())[:300] or type(module).__name__,
        )
    return found, left


def rounded_codes(weight: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [rows, groups * group] and scales [rows, groups] of a weight [rows, ...]."""
    rows = weight.flatten(1)
    padded = functional.pad(rows, (0, -rows.shape[1] % group)).reshape(-1, group).double()
    largest = 2 ** (bits - 1) - 1
    scales = (least_error(padded, bits) / largest).to(weight_only.SCALE_TYPE)
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales).double()[:, None]
    codes = (padded / divisor).round().clamp(-largest, largest).to(torch.int8)
    return codes.reshape(len(rows), -1), scales.reshape(len(rows), -1)
