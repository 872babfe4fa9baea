"""The scaling around every network, so that clients send raw pixels and raw feature values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.attention import split_attention


class Preprocess(nn.Module):
    """`(x - mean) / std` per channel of an image, or per feature; a constant one (std 0) becomes 0.

    The numbers come from the signature and are not saved with the weights: one source.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        wanted = signature.input_shape[0]
        for name, values in (("mean", signature.mean), ("std", signature.std)):
            if len(values) not in (1, wanted):
                raise ModelError(
                    f"the signature's {name} needs one value or {wanted}, one a channel or feature; it has",
                    len(values),
                )
        shape = (-1, *(1 for _ in signature.input_shape[1:]))
        std = torch.tensor(signature.std, dtype=torch.float32)
        self.register_buffer("mean", torch.tensor(signature.mean).reshape(shape), persistent=False)
        self.register_buffer(
            "std", torch.where(std > 0, std, torch.ones_like(std)).reshape(shape), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """uint8 or float32 [B, *input_shape] -> float32 of the same shape."""
        return (x.to(torch.float32) - self.mean) / self.std


class Rescale(nn.Module):
    """`out * target_std + target_mean`: a regression's answer in raw units."""

    mean: Tensor
    std: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        for name, values in (
            ("target_mean", signature.target_mean),
            ("target_std", signature.target_std),
        ):
            if len(values) != signature.outputs:
                raise ModelError(
                    f"the signature's {name} must have {signature.outputs} values, one a target; it has",
                    len(values),
                )
        self.register_buffer("mean", torch.tensor(signature.target_mean), persistent=False)
        self.register_buffer("std", torch.tensor(signature.target_std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] -> [B, T]."""
        return x * self.std + self.mean


class Served(nn.Module):
    """Scaling, network (`body`), and for regression the way back to raw units.

    torch's attention in the body is split into layers (`split_attention`). The `state_dict` holds the body's
    tensors alone, as `body.*`.
    """

    def __init__(self, signature: Signature, body: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess(signature) if signature.mean else nn.Identity()
        self.body = split_attention(body)
        self.rescale = Rescale(signature) if signature.task == "regression" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Raw rows [B, *input_shape] -> logits [B, K] or values [B, T]."""
        out: Tensor = self.rescale(self.body(self.preprocess(x)))
        return out
