"""Layers as products of two thin ones: the form that factorization gives a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def split(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replace the named layers, in place, by two of their rank; the new weights are not set.

    A linear becomes linear -> linear, a convolution k x k to `rank` channels -> 1 x 1, an embedding one
    of `rank` features -> linear.

    Raises:
        AttributeError: there is no such layer.
        TypeError: it is neither a linear, a convolution without groups nor an embedding.
    """
    for name, rank in ranks.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, thin(module.get_submodule(name), rank))


def thin(layer: nn.Module, rank: int) -> nn.Sequential:
    """Two layers that compute a product of `rank` columns in the layer's shape, dtype and device."""
    if type(layer) is nn.Linear:
        first: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        second: nn.Module = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    elif type(layer) is nn.Conv2d and layer.groups == 1:
        first = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    elif type(layer) is nn.Embedding:
        first = nn.Embedding(layer.num_embeddings, rank, layer.padding_idx)
        second = nn.Linear(rank, layer.embedding_dim, bias=False)
    else:
        raise TypeError(f"{type(layer).__name__} has no product form")
    return nn.Sequential(first, second).to(layer.weight)
