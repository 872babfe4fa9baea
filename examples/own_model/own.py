"""A user's own data and network: what `run.yaml` names as `own:dataset` and `own:model`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.signature import Signature

CLASSES = ("disc", "square", "cross", "ring")


def dataset(
    rows: int = 1200, size: int = 12, noise: float = 45.0, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Gray images of four shapes of random place and size, under noise.

    Returns:
        Images uint8 [rows, 1, size, size], labels int64 [rows], class names.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % len(CLASSES)
    centre = random.uniform(size * 0.4, size * 0.6, (2, rows, 1, 1))
    radius = random.uniform(size * 0.22, size * 0.36, (rows, 1, 1))
    down, across = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    dy, dx = np.abs(down - centre[0]), np.abs(across - centre[1])
    distance, larger, smaller = np.hypot(dy, dx), np.maximum(dy, dx), np.minimum(dy, dx)
    inside = np.stack(
        [
            distance <= radius,
            larger <= radius,
            (larger <= radius) & (smaller <= radius * 0.35),
            (distance <= radius) & (distance >= radius * 0.55),
        ]
    )
    clean = 40.0 + 170.0 * inside[labels, np.arange(rows)]
    images = np.clip(clean + random.normal(0, noise, clean.shape), 0, 255).astype(np.uint8)
    return images[:, None], labels.astype(np.int64), CLASSES


class Separable(nn.Module):
    """Depthwise and pointwise convolution (MobileNet, https://arxiv.org/abs/1704.04861)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""
        out: Tensor = self.layers(x)
        return out


def model(signature: Signature, width: int = 16) -> nn.Module:
    """Scaled images [B, C, H, W] to logits [B, classes]: scaling itself is added around it."""
    channels = signature.input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Separable(width, 2 * width),
        Separable(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, signature.outputs),
    )
