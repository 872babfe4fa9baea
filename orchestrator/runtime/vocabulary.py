"""Embeddings of the tokens that were kept: the form that pruning of the vocabulary gives a model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from orchestrator.errors import ModelError


class KeptTokens(nn.Module):
    """An embedding that knows some of the tokens; the others share the place of one of those."""

    places: Tensor
    """Token -> row of the embedding: int16 or int32 [tokens], saved with the weights."""

    def __init__(self, whole: nn.Embedding, kept: int) -> None:
        """Of the form of `whole`, with so many rows; their numbers come later."""
        super().__init__()
        kind = torch.int16 if kept < 2**15 else torch.int32
        self.register_buffer("places", torch.zeros(whole.num_embeddings, dtype=kind))
        self.table = nn.Embedding(kept, whole.embedding_dim, whole.padding_idx).to(whole.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """int32 [B, L] -> [B, L, features]."""
        out: Tensor = self.table(self.places[ids].int())
        return out


def forget(module: nn.Module, name: str, kept: int) -> KeptTokens:
    """Replace the embedding of this name, in place, by one of so many tokens.

    Raises:
        AttributeError: there is no such layer.
        TypeError: it is no embedding.
    """
    whole = module.get_submodule(name)
    if type(whole) is not nn.Embedding:
        raise TypeError(f"{name} is no embedding")
    owner, _, leaf = name.rpartition(".")
    smaller = KeptTokens(whole, kept)
    setattr(module.get_submodule(owner), leaf, smaller)
    return smaller


def vocabularies(module: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Embeddings by token anywhere in `module`: its name, what gives the tokens of preprocessed rows,
    and the token that may stand for others.

    An architecture names them in a method `vocabulary() -> (embedding, tokens, substitute)`.

    Raises:
        ModelError: the method names a module that is none of the model's.
    """
    names = {part: name for name, part in module.named_modules()}
    for part in module.modules():
        method = getattr(part, "vocabulary", None)
        if callable(method):
            embedding, tokens, substitute = method()
            if embedding not in names:
                raise ModelError("vocabulary() names a module outside of the model", type(part).__name__)
            yield names[embedding], tokens, substitute
