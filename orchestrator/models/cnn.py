"""A small plain network: two convolutions, two linear layers."""

from __future__ import annotations

from torch import nn

from orchestrator.config.model import Cnn
from orchestrator.config.signature import Signature
from orchestrator.models.base import image_shape, make_body


@make_body.register
def cnn(settings: Cnn, signature: Signature) -> nn.Module:
    """(3x3 convolution, batch norm, ReLU, 2x2 max pool) twice, then hidden and output layer.

    A side that is 1 already is not pooled further.
    """
    channels, height, width = image_shape(signature, "cnn")
    layers: list[nn.Module] = []
    for wide in settings.kwargs.channels:
        layers += [
            nn.Conv2d(channels, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        ]
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = wide
    hidden = settings.kwargs.hidden
    layers += [nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU()]
    if settings.kwargs.dropout:
        layers.append(nn.Dropout(settings.kwargs.dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, signature.outputs))
