"""A plain network for 32x32 images that learns in few epochs."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.config.model import Airbench
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import image_shape, make_body
from orchestrator.models.resnet import GlobalMaxPool, Scale, WhiteningConv

STATISTICS_MOMENTUM = 0.4
"""Share of the newest batch in the running statistics."""


class NormRelu(nn.Module):
    """Batch norm that only shifts, ReLU and, where asked, a 2x2 max pool.

    A norm with a positive scale and a maximum change places without changing the result. Training pools
    first, which leaves a quarter of the work; afterwards the pool comes last, behind what int8 kernels fuse.
    The norm's mode counts: batch statistics that are estimated anew are of what it sees in training.
    """

    def __init__(self, channels: int, pool: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, momentum=STATISTICS_MOMENTUM)
        self.norm.weight.requires_grad_(False)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], or [B, C, H / 2, W / 2]."""
        out: Tensor = (
            self.relu(self.norm(self.pool(x))) if self.norm.training else self.pool(self.relu(self.norm(x)))
        )
        return out


def conv_norm_relu(inputs: int, outputs: int, pool: bool) -> list[nn.Module]:
    """3x3 convolution that starts by passing its inputs on, norm, ReLU, pool."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[: min(inputs, outputs)])
    return [conv, NormRelu(outputs, pool)]


@make_body.register
def airbench(settings: Airbench, signature: Signature) -> nn.Module:
    """Jordan 2024, "94% on CIFAR-10 in 3.29 seconds" (https://arxiv.org/abs/2404.00498), section 3.

    From there: the whitening first layer, convolutions that start as the identity, norms without a trained
    scale, blocks of convolution, pool, convolution. Unlike there: ReLU behind each norm, which int8 kernels
    fuse.

    Raises:
        ModelError: the rows are not images of at least 2 ** len(widths) pixels a side.
    """
    channels, height, width = image_shape(signature, "airbench")
    if min(height, width) < 2 ** len(settings.kwargs.widths):
        raise ModelError(
            f"airbench halves an image {len(settings.kwargs.widths)} times; the rows are too small",
            f"{height}x{width}",
            "give fewer kwargs.widths",
        )
    stem = WhiteningConv(channels)
    layers: list[nn.Module] = [stem, nn.ReLU()]
    inputs = stem.outputs
    for outputs in settings.kwargs.widths:
        layers += [
            *conv_norm_relu(inputs, outputs, pool=True),
            *conv_norm_relu(outputs, outputs, pool=False),
        ]
        inputs = outputs
    layers += [GlobalMaxPool(), nn.Linear(inputs, signature.outputs, bias=False)]
    if signature.task != "regression":
        layers.append(Scale(1 / 9))
    return nn.Sequential(*layers)
