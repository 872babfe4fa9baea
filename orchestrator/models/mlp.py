"""Multi-layer perceptron, for feature rows and for flattened images."""

from __future__ import annotations

import math

from torch import nn

from orchestrator.config.model import Mlp
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body
from orchestrator.models.subspace import FeatureSubset


@make_body.register
def mlp(settings: Mlp, signature: Signature) -> nn.Module:
    """Linear and ReLU for each hidden width, then a linear head."""
    layers: list[nn.Module] = [nn.Flatten()]
    if settings.kwargs.features is not None:
        layers.append(FeatureSubset(signature, settings.kwargs.features))
    features = math.prod(signature.input_shape)
    for width in settings.kwargs.widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        if settings.kwargs.dropout:
            layers.append(nn.Dropout(settings.kwargs.dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, signature.outputs))
