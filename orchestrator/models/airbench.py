"""A plain network for 32x32 images that learns in few epochs."""

from __future__ import annotations

from torch import nn

from orchestrator.config.model import Airbench
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import image_shape, make_body
from orchestrator.models.resnet import GlobalMaxPool, Scale, WhiteningConv

STATISTICS_MOMENTUM = 0.4
"""Share of the newest batch in the running statistics."""


def conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3 convolution that starts by passing its inputs on, and a batch norm that only shifts."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[: min(inputs, outputs)])
    norm = nn.BatchNorm2d(outputs, momentum=STATISTICS_MOMENTUM)
    norm.weight.requires_grad_(False)
    return [conv, norm, nn.ReLU()]


@make_body.register
def airbench(settings: Airbench, signature: Signature) -> nn.Module:
    """Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (https://arxiv.org/abs/2404.00498), section 3.

    From there: the whitening first layer, convolutions that start as the identity, norms without a trained
    scale, blocks of convolution, pool, convolution. Unlike there: ReLU behind each norm and pooling behind
    the ReLU, which is what int8 kernels fuse.

    Raises:
        ModelError: the rows are not images of at least 8x8 pixels.
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
        layers += [*conv_bn_relu(inputs, outputs), nn.MaxPool2d(2), *conv_bn_relu(outputs, outputs)]
        inputs = outputs
    layers += [GlobalMaxPool(), nn.Linear(inputs, signature.outputs, bias=False)]
    if signature.task == "classification":
        layers.append(Scale(1 / 9))
    return nn.Sequential(*layers)
