"""Attention heads of a module: found by their layers' names, and cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_INPUTS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_OUTPUTS = ("out", "o_proj", "out_proj", "out_lin", "proj", "dense")
_COUNTS = ("heads", "num_heads", "num_attention_heads", "n_heads")
_WIDTHS = ("inner", "all_head_size")
"""Attributes that hold heads times width of a head; they change with the heads."""


@dataclass(frozen=True)
class Attention:
    """Self-attention with a linear each for queries, keys, values and the output."""

    name: str
    owner: nn.Module
    """Holds the inputs' layers and the number of heads."""
    inputs: tuple[nn.Linear, nn.Linear, nn.Linear]
    output: nn.Linear
    count: str
    """Attribute with the number of heads."""

    @property
    def heads(self) -> int:
        """How many there are now."""
        return int(getattr(self.owner, self.count))

    @property
    def width(self) -> int:
        """Features of a head."""
        return self.output.in_features // self.heads

    def columns(self, heads: Sequence[int]) -> Tensor:
        """Numbers of the features that belong to these heads."""
        within = torch.arange(self.width)
        return (torch.tensor(list(heads), dtype=torch.long)[:, None] * self.width + within).flatten()


def attentions(module: nn.Module) -> dict[str, Attention]:
    """What this can cut, by name: ours, and those of `transformers` that keep queries, keys and values apart.

    Left out are fused projections, and keys or values of fewer heads than the queries.
    """
    parts = dict(module.named_modules())
    found = {}
    for name, part in parts.items():
        owner = parts.get(name.rpartition(".")[0]) if name else None
        attention = _attention(name, part, owner)
        if attention is not None:
            found[name] = attention
    return found


def keep_heads(module: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Cut all heads but these, in place.

    Raises:
        KeyError: there is no such attention.
        IndexError: it has no such head.
    """
    known = attentions(module)
    for name, heads in kept.items():
        attention = known[name]
        columns = attention.columns(heads)
        for layer in attention.inputs:
            _replace(layer, layer.weight.detach()[columns], None if layer.bias is None else columns)
        _replace(attention.output, attention.output.weight.detach()[:, columns], None)
        setattr(attention.owner, attention.count, len(heads))
        for attribute in _WIDTHS:
            if hasattr(attention.owner, attribute):
                setattr(attention.owner, attribute, len(columns))


def _attention(name: str, part: nn.Module, owner: nn.Module | None) -> Attention | None:
    count = next((key for key in _COUNTS if isinstance(getattr(part, key, None), int)), None)
    if count is None:
        return None
    for names in _INPUTS:
        layers = [getattr(part, key, None) for key in names]
        linears = [layer for layer in layers if type(layer) is nn.Linear]
        if len(linears) == len(names):
            query, key, value = linears
            output = next(_outputs(part, owner, value.out_features), None)
            if output is None or len({query.out_features, key.out_features, value.out_features}) > 1:
                return None
            if value.out_features % getattr(part, count):
                return None
            return Attention(name, part, (query, key, value), output, count)
    return None


def _outputs(part: nn.Module, owner: nn.Module | None, width: int) -> Iterator[nn.Linear]:
    """The layer behind the attention: a child, or (BERT) `output.dense` beside it."""
    beside = getattr(getattr(owner, "output", None), "dense", None)
    for layer in (*(getattr(part, key, None) for key in _OUTPUTS), beside):
        if type(layer) is nn.Linear and layer.in_features == width:
            yield layer


def _replace(layer: nn.Linear, weight: Tensor, rows: Tensor | None) -> None:
    """Give a linear a smaller weight, and of its bias the given rows."""
    trained = layer.weight.requires_grad
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.clone(), requires_grad=trained)
    if rows is not None and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone(), requires_grad=layer.bias.requires_grad)
