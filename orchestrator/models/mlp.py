"""Multi-layer perceptron, for feature rows, tables and flattened images."""

from __future__ import annotations

import math

from torch import nn

from orchestrator.config.model import Mlp
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import make_body
from orchestrator.models.subspace import FeatureSubset
from orchestrator.models.table import Columns, Embedded


@make_body.register
def mlp(settings: Mlp, signature: Signature) -> nn.Module:
    """Linear and ReLU for each hidden width, then a linear head; categories of a table are embedded first.

    Raises:
        ModelError: the rows are neither pixels nor columns.
    """
    if signature.input_dtype not in ("uint8", "float32"):
        raise ModelError(
            "mlp needs images or columns; the rows are text or sound",
            signature.input_dtype,
            "choose another factory",
        )
    layers: list[nn.Module] = [nn.Flatten()]
    if settings.kwargs.features is not None:
        layers.append(FeatureSubset(signature, settings.kwargs.features))
    features = math.prod(signature.input_shape)
    if (columns := Columns(signature)).sizes:
        layers.append(embedded := Embedded(columns))
        features = embedded.width
    for width in settings.kwargs.widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        if settings.kwargs.dropout:
            layers.append(nn.Dropout(settings.kwargs.dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, signature.outputs))
