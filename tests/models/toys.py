"""Toy signatures, settings and factories of the model tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.model import (
    Airbench,
    AirbenchKwargs,
    Cnn,
    CnnKwargs,
    Mlp,
    MlpKwargs,
    ModelSettings,
    ResNet,
    ResNet9,
    ResNet9Kwargs,
    ResNetKwargs,
    Vit,
    VitKwargs,
)
from orchestrator.config.signature import Signature, Task

SMALL: dict[str, ModelSettings] = {
    "mlp": Mlp(kwargs=MlpKwargs(widths=(16, 8), dropout=0.1)),
    "cnn": Cnn(kwargs=CnnKwargs(channels=(8, 12), hidden=16, dropout=0.1)),
    "resnet": ResNet(kwargs=ResNetKwargs(depth=8, width=8)),
    "resnet9": ResNet9(kwargs=ResNet9Kwargs(width=4)),
    "resnet9-fast": ResNet9(kwargs=ResNet9Kwargs(width=4, stem_pool=True, whiten=True)),
    "resnet9-mirror": ResNet9(kwargs=ResNet9Kwargs(width=4, mirror=True)),
    "airbench": Airbench(kwargs=AirbenchKwargs(widths=(8, 12))),
    "vit": Vit(kwargs=VitKwargs(dim=24, depth=2, heads=3)),
}
DIGITS, COLOUR, ROWS = (1, 8, 8), (3, 32, 32), (6,)

FITTING = [(name, shape) for name in SMALL for shape in (DIGITS, COLOUR)] + [("mlp", ROWS)]
"""Every architecture on every input that it fits."""


def signature(shape: tuple[int, ...], *, task: Task = "classification", outputs: int = 10) -> Signature:
    """Scaling that differs between channels, so that a wrong axis shows."""
    channels, regression = shape[0], task == "regression"
    return Signature(
        task=task,
        input_shape=shape,
        input_dtype="uint8" if len(shape) == 3 else "float32",
        outputs=outputs,
        mean=tuple(10.0 + i for i in range(channels)),
        std=tuple(50.0 + i for i in range(channels)),
        target_mean=tuple(100.0 * (i + 1) for i in range(outputs)) if regression else (),
        target_std=tuple(10.0 for _ in range(outputs)) if regression else (),
    )


def rows(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Random raw rows as a client would send them."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 3:
        return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn(count, *shape, generator=generator) * 50


def flat(signature: Signature, width: int = 4) -> nn.Module:
    """A factory that keeps the contract."""
    features = int(torch.tensor(signature.input_shape).prod())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, signature.outputs)
    )


def raising(signature: Signature) -> nn.Module:
    """A factory that fails."""
    raise RuntimeError(f"no such backbone for {signature.task}")


def no_module(signature: Signature) -> object:
    """A factory that returns something else."""
    return signature.outputs


def wrong_width(signature: Signature) -> nn.Module:
    """A model with one output too many."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(signature.outputs + 1))


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


def returns_tuple(signature: Signature) -> nn.Module:
    """A model whose answer is no tensor."""
    assert signature.outputs
    return _Tuple()


def fails_forward(signature: Signature) -> nn.Module:
    """A model that does not take the input."""
    return nn.Linear(7, signature.outputs)
