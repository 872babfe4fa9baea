"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.model import EncoderKwargs, Vit, VitKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import image_shape, make_body


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each image.

    The linear layers see rows [B * T, C], not [B, T, C]: int8 lowering fuses only two-dimensional ones.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, dim
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; of `seen`, bool [B, T], a row's tokens attend to those that are True."""
        tokens, dim = x.shape[1], x.shape[2]
        rows = x.reshape(-1, dim)
        shape = (-1, tokens, self.heads, self.inner // self.heads)
        query, key, value = (
            layer(rows).reshape(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = None if seen is None else seen[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, self.inner))
        return out.reshape(-1, tokens, dim)

    def fixed_width_layers(self) -> list[nn.Module]:
        """Their outputs are cut into heads."""
        return [self.query, self.key, self.value]


class Encoder(nn.Module):
    """Pre-norm transformer block; dropout acts on what each half adds."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; `seen` as in `Attention`."""
        tokens, dim = x.shape[1], x.shape[2]
        x = x + self.dropout(self.attention(self.norm1(x), seen))
        widened: Tensor = self.dropout(self.mlp(self.norm2(x).reshape(-1, dim)))
        return x + widened.reshape(-1, tokens, dim)


class Blocks(nn.Module):
    """Encoder blocks, a last norm and the mean over the tokens that are seen."""

    def __init__(self, kwargs: EncoderKwargs) -> None:
        super().__init__()
        hidden = max(1, round(kwargs.dim * kwargs.mlp_ratio))
        self.blocks = nn.ModuleList(
            Encoder(kwargs.dim, kwargs.heads, hidden, kwargs.dropout) for _ in range(kwargs.depth)
        )
        self.norm = nn.LayerNorm(kwargs.dim)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, C]; `seen`, bool [B, T], has at least one token a row."""
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)
        if seen is None:
            return x.mean(1)
        weights = seen.to(x.dtype)[:, :, None]
        return (x * weights).sum(1) / weights.sum(1)


class VisionTransformer(nn.Module):
    """Patches, learned positions, encoder blocks, mean over the tokens, linear head.

    Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929), with mean pooling instead of a class token
    as in Beyer et al. 2022 (https://arxiv.org/abs/2205.01580).
    """

    def __init__(self, kwargs: VitKwargs, channels: int, tokens: int, outputs: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, kwargs.dim, kwargs.patch, kwargs.patch)
        self.positions = nn.Parameter(torch.empty(1, tokens, kwargs.dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        hidden = max(1, round(kwargs.dim * kwargs.mlp_ratio))
        self.blocks = nn.Sequential(*(Encoder(kwargs.dim, kwargs.heads, hidden) for _ in range(kwargs.depth)))
        self.norm = nn.LayerNorm(kwargs.dim)
        self.head = nn.Linear(kwargs.dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return out


@make_body.register
def vit(settings: Vit, signature: Signature) -> nn.Module:
    """The transformer for the signature's images.

    Raises:
        ModelError: the patch does not divide the image.
    """
    channels, height, width = image_shape(signature, "vit")
    patch = settings.kwargs.patch
    if height % patch or width % patch:
        raise ModelError(
            f"vit cannot cut images of {height}x{width} pixels into patches of",
            f"{patch}x{patch}",
            "set kwargs.patch to a common divisor of height and width",
        )
    return VisionTransformer(
        settings.kwargs, channels, (height // patch) * (width // patch), signature.outputs
    )
