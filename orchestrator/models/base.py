"""What all architectures share: the registry and the checks of the input's shape."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import singledispatch
from typing import ClassVar

import torch
from torch import Tensor, nn

from orchestrator.config.base import Settings
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError


@singledispatch
def make_body(settings: Settings, signature: Signature) -> nn.Module:
    """The bare network for `settings`: scaled float32 rows in, logits or scaled targets [B, outputs] out.

    An architecture registers its function for its settings class.

    Raises:
        ModelError: the architecture does not fit the signature's input.
    """
    raise ModelError(
        "no architecture is registered for these settings", type(settings).__name__, f"got {signature.task}"
    )


class DataInitialized(nn.Module):
    """A first layer whose weights are set from scaled train rows before the first epoch."""

    initialized: Tensor
    """uint8 scalar, saved with the weights: whether that was done."""
    from_rows: ClassVar[int | None] = 4096
    """How many train rows it is set from; None: all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.uint8))

    def initialize(self, blocks: Iterable[Tensor]) -> None:
        """Set the weights.

        Args:
            blocks: scaled rows [n, ...], as the network gets them.
        """
        raise NotImplementedError


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights of all convolutions and linears by the names of `named_parameters`; tied ones once, whichever
    layer (an embedding, too) they are named after."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    wanted = {id(part.weight) for part in module.modules() if isinstance(part, kinds)}
    return {name: weight for name, weight in module.named_parameters() if id(weight) in wanted}


def tied_to_float(module: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Layers of `names` (to be rounded) that share their weight with one that is not among them, with that as
    the reason to leave each: rounded, it would need a second weight beside the float one.
    """
    holders: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    found = {}
    for name in names:
        others = [one for one in holders.get(id(module.get_submodule(name).weight), ()) if one not in names]
        if others:
            found[name] = f"its weight is also that of {others[0] or 'the model itself'}, which stays float"
    return found


def image_shape(signature: Signature, architecture: str) -> tuple[int, int, int]:
    """Channels, height and width of the input.

    Raises:
        ModelError: the rows are not images.
    """
    if len(signature.input_shape) != 3:
        raise ModelError(
            f"{architecture} needs images [channels, height, width]; the rows have the shape",
            list(signature.input_shape),
            "use mlp for feature rows",
        )
    channels, height, width = signature.input_shape
    return channels, height, width


def fixed_width_layers(module: nn.Module) -> list[nn.Module]:
    """Layers anywhere in `module` whose output width must stay: what pruning leaves whole.

    An architecture names them in a method `fixed_width_layers() -> list[nn.Module]`, when something in
    its forward pass depends on the width (attention heads). Its last layer need not be named.
    """
    found: list[nn.Module] = []
    for part in module.modules():
        method = getattr(part, "fixed_width_layers", None)
        if callable(method):
            found += method()
    return found
