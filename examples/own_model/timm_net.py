"""Any network of `timm` by its name; needs `timm` and `torchvision`."""

from __future__ import annotations

import timm
from torch import nn

from orchestrator.config.signature import Signature


def create(signature: Signature, name: str = "resnet10t", weights: str = "") -> nn.Module:
    """A `timm` network with a fresh head, optionally from a local file of weights."""
    network: nn.Module = timm.create_model(
        name,
        pretrained=False,
        checkpoint_path=weights,
        in_chans=signature.input_shape[0],
        num_classes=signature.outputs,
    )
    return network
