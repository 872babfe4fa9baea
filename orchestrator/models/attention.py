"""`nn.MultiheadAttention` with its projections as layers, so that they can be pruned, quantized and counted.

torch keeps the three projections in one parameter, and in eval mode runs the attention (or the whole
`nn.TransformerEncoderLayer` around it) as one operator. Neither is a linear layer to anything that looks for
one: int8 left them in float and the count of operations left them out, both without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_FUSED = ("in_proj_weight", "in_proj_bias")
_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Names of torch's parameters; the second where keys or values have another width."""
_LAYERS = ("query", "key", "value")


class SplitAttention(nn.Module):
    """Computes what the `nn.MultiheadAttention` it is made from does, with a linear each for its projections.

    Weights are read under torch's names too.
    """

    # `nn.TransformerEncoderLayer` asks for these before it takes the fused operator.
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = source.embed_dim, source.num_heads
        self.dropout, self.batch_first = source.dropout, source.batch_first
        state = separated(source.state_dict(), _places(source))
        width = source.embed_dim
        kind = {"device": source.out_proj.weight.device, "dtype": source.out_proj.weight.dtype}
        for name, features in zip(_LAYERS, (width, source.kdim, source.vdim), strict=True):
            setattr(self, name, nn.Linear(features, width, bias=f"{name}.bias" in state, **kind))
        self.out_proj = nn.Linear(width, width, bias="out_proj.bias" in state, **kind)
        self.load_state_dict(state)
        for fused, parameter in source.named_parameters():
            for name in separated({fused: parameter}, _places(source)):
                self.get_parameter(name).requires_grad_(parameter.requires_grad)
        self.train(source.training)
        self.register_load_state_dict_pre_hook(_read_fused)  # type: ignore[no-untyped-call]

    def fixed_width_layers(self) -> list[nn.Module]:
        """Their outputs are cut into heads."""
        return [getattr(self, name) for name in _LAYERS]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; `is_causal` is a hint there, and `attn_mask` decides here."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs attn_mask, as in nn.MultiheadAttention")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (part.unsqueeze(0) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        queries, keys, values = (
            getattr(self, name)(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name, part in zip(_LAYERS, (query, key, value), strict=True)
        )
        mask = self._mask(key_padding_mask, attn_mask, queries)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            mixed = weights @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _mask(self, padding: Tensor | None, mask: Tensor | None, queries: Tensor) -> Tensor | None:
        """Both masks as one that is added to scores [B, H, L, S]; True and -inf hide a position."""
        found = None
        if mask is not None:
            # [L, S], or [B * H, L, S].
            found = _added(mask, queries)
            found = found if mask.dim() == 2 else found.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            hidden = _added(padding, queries)[:, None, None, :]
            found = hidden if found is None else found + hidden
        return found


def split_attention(module: nn.Module) -> nn.Module:
    """The module with every `nn.MultiheadAttention` in it replaced, in place; it is the module itself.

    One with extra keys (`add_bias_kv`, `add_zero_attn`) is left as it is, as is a module that is one itself.
    """
    made: dict[nn.Module, SplitAttention] = {}
    for part in list(module.modules()):
        # named_children leaves out a layer's second name.
        for name, child in list(part._modules.items()):
            if type(child) is nn.MultiheadAttention and child.bias_k is None and not child.add_zero_attn:
                made[child] = made.get(child) or SplitAttention(child)
                setattr(part, name, made[child])
        if isinstance(part, nn.TransformerEncoder):
            # It decided when it was made, by the attention that it had, to pack rows with padding for the
            # fused operator.
            part.use_nested_tensor = False
    return module


def separated(tensors: Mapping[str, Tensor], places: Collection[str]) -> dict[str, Tensor]:
    """Tensors with torch's names of projections under the names of the layers, where `places` has those."""
    found = {}
    for name, tensor in tensors.items():
        parts = {} if name in places else _parts(name, tensor)
        found.update(parts if parts and all(part in places for part in parts) else {name: tensor})
    return found


def _parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
    owner, dot, leaf = name.rpartition(".")
    if leaf in _FUSED:
        kind = leaf.removeprefix("in_proj_")
        pieces = tensor.chunk(3) if len(tensor) % 3 == 0 else ()
        return {f"{owner}{dot}{layer}.{kind}": piece for layer, piece in zip(_LAYERS, pieces, strict=False)}
    if leaf in _APART:
        return {f"{owner}{dot}{_LAYERS[_APART.index(leaf)]}.weight": tensor}
    return {}


def _places(source: nn.MultiheadAttention) -> list[str]:
    biases = [] if source.in_proj_bias is None else [f"{name}.bias" for name in _LAYERS]
    return [*(f"{name}.weight" for name in _LAYERS), *biases]


def _read_fused(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    places = [prefix + name for name in module.state_dict()]
    own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    state.update(separated(own, places))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
    return mask.to(like.dtype)
