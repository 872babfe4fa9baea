"""Steps that keep weights as small integers and compute in float."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import WeightOnlyInt4, WeightOnlyInt8
from orchestrator.errors import CompressionError
from orchestrator.runtime import weight_only
from orchestrator.runtime.int8 import check_names, is_within
from orchestrator.training.limits import least_error

BITS = {"int8_weight_only": 8, "int4_weight_only": 4}
DEFAULT_GROUPS = {"int8_weight_only": WeightOnlyInt8().group, "int4_weight_only": WeightOnlyInt4().group}


@apply_step.register(WeightOnlyInt8)
@apply_step.register(WeightOnlyInt4)
def quantize_weights(step: WeightOnlyInt8 | WeightOnlyInt4, state: State, context: Context) -> State:  # noqa: ARG001
    """Round weights to symmetric integers, a scale for each group of a row.

    The scale is that of the least squared error (as in `clip`), which matters with four bits. Layers that a
    group's scale would not make smaller stay float.

    Raises:
        CompressionError: there is no convolution, linear or embedding that would become smaller, or no layer
            to keep in float of a name.
    """
    bits, keep = BITS[step.kind], step.keep_float or ()
    module = copy_of(state.module)
    groups = groups_of(module, step.group, bits, keep)
    weight_only.convert(module, groups, bits)
    for name, group in groups.items():
        layer = module.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        weight_only.fill(layer, *rounded_codes(layer.weight.detach(), group, bits))
    return state.after(step, module, {"groups": groups})


def groups_of(
    module: nn.Module, group: int | None, bits: int, keep_float: Collection[str] = ()
) -> dict[str, int]:
    """Layers that become smaller, each with how many weights of a row share a scale.

    Raises:
        CompressionError: there is none, or no layer to keep in float of a name.
    """
    check_names(module, keep_float)
    found = {}
    for name, layer in weight_only.layers(module).items():
        if is_within(name, keep_float):
            continue
        assert isinstance(layer.weight, Tensor)
        columns = layer.weight.flatten(1).shape[1]
        own = min(group or columns, columns)
        packed = -(-columns // own) * (own * bits / 8 + weight_only.SCALE_TYPE.itemsize)
        if packed < columns * layer.weight.element_size():
            found[name] = own
    if not found:
        raise CompressionError(
            "no convolution, linear or embedding would become smaller", type(module).__name__
        )
    return found


def rounded_codes(weight: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [rows, groups * group] and scales [rows, groups] of a weight [rows, ...]."""
    rows = weight.flatten(1)
    padded = functional.pad(rows, (0, -rows.shape[1] % group)).reshape(-1, group).double()
    largest = 2 ** (bits - 1) - 1
    scales = (least_error(padded, bits) / largest).to(weight_only.SCALE_TYPE)
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales).double()[:, None]
    codes = (padded / divisor).round().clamp(-largest, largest).to(torch.int8)
    return codes.reshape(len(rows), -1), scales.reshape(len(rows), -1)
