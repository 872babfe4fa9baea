"""Residual networks for small images: the CIFAR family and Page's nine layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.model import ResNet, ResNet9
from orchestrator.config.signature import Signature
from orchestrator.models.base import DataInitialized, image_shape, make_body
from orchestrator.models.mirror import Mirrored


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution that keeps the size (but for the stride) and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """`relu(x + two convolutions of x)`; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs)
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.relu(self.shortcut(x) + self.branch(x))
        return out


@make_body.register
def resnet(settings: ResNet, signature: Signature) -> nn.Module:
    """He et al. 2015 (https://arxiv.org/abs/1512.03385), section 4.2, with projection shortcuts."""
    channels, _, _ = image_shape(signature, "resnet")
    width = settings.kwargs.width
    layers: list[nn.Module] = [*conv_bn(channels, width, 3, settings.kwargs.stem_stride), nn.ReLU()]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for block in range((settings.kwargs.depth - 2) // 6):
            layers.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, signature.outputs))


class GlobalMaxPool(nn.Module):
    """Largest value of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C]."""
        return x.amax((2, 3))


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * self.factor


class WhiteningConv(DataInitialized):
    """Fixed 2x2 convolution onto the principal components of image patches, each scaled to variance 1.

    Page 2019 (https://myrtle.ai/learn/how-to-train-your-resnet-8-bag-of-tricks/). With their negatives, as in
    Jordan 2024 (https://arxiv.org/abs/2404.00498), section 3.2, so that the ReLU behind it loses nothing.
    """

    KERNEL = 2
    NOISE = 5e-4
    """Added to each variance: components that hardly occur are not blown up."""
    MOST_PIXELS = 4096 * 32 * 32
    """Of the images that it is set from: their patches as float64 are about 17 times as large as they."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = 2 * channels * self.KERNEL**2
        self.conv = nn.Conv2d(channels, self.outputs, self.KERNEL, bias=False)
        self.conv.weight.requires_grad_(False)

    def initialize(self, blocks: Iterable[Tensor]) -> None:
        """Set the filters from scaled images [n, C, H, W], of large ones from the first alone."""
        size, rows = self.KERNEL, torch.cat(list(blocks))
        rows = rows[: max(self.MOST_PIXELS // (rows.shape[2] * rows.shape[3]), 1)]
        patches = rows.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
        flat = patches.reshape(-1, self.outputs // 2).double()
        variances, components = torch.linalg.eigh(torch.cov(flat.T))
        filters = (components / (variances + self.NOISE).sqrt()).T.float()
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([filters, -filters]).reshape(self.conv.weight.shape))

    def fixed_width_layers(self) -> list[nn.Module]:
        """Components with much variance have small filters: a norm would remove the best first."""
        return [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 8 C, H, W]; the last row and column see a border of zeros."""
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


@make_body.register
def resnet9(settings: ResNet9, signature: Signature) -> nn.Module:
    """Page 2018, "How to train your ResNet", part 4 (https://myrtle.ai/learn/how-to-train-your-resnet-4-architecture/).

    Each wider convolution is followed by a 2x2 max pool as long as 4x4 pixels remain: 32x32 images are
    pooled three times as in the source, 8x8 images once; with `stem_pool` once more and first, as Jordan
    2024 does (https://arxiv.org/abs/2404.00498). Logits are multiplied by 0.125, as in the source. Unlike
    there, the residual blocks have their last ReLU after the sum: the form that torchao 0.18 fuses into one
    int8 kernel.
    """
    channels, height, width = image_shape(signature, "resnet9")
    wide = settings.kwargs.width
    inputs = wide
    layers: list[nn.Module] = [*conv_bn(channels, wide), nn.ReLU()]
    if settings.kwargs.whiten:
        stem = WhiteningConv(channels)
        layers, inputs = [stem, nn.ReLU()], stem.outputs

    def pool() -> None:
        nonlocal height, width
        if min(height, width) >= 8:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2

    if settings.kwargs.stem_pool:
        pool()
    for factor, residual in ((2, True), (4, False), (8, True)):
        layers += [*conv_bn(inputs, wide * factor), nn.ReLU()]
        inputs = wide * factor
        pool()
        if residual:
            layers.append(Block(wide * factor, wide * factor, stride=1))
    layers += [GlobalMaxPool(), nn.Linear(wide * 8, signature.outputs)]
    if signature.task != "regression":
        layers.append(Scale(0.125))
    network = nn.Sequential(*layers)
    return Mirrored(network) if settings.kwargs.mirror else network
