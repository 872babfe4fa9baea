"""A linear model of hashed n-grams."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.model import TextNgrams, TextNgramsKwargs
from orchestrator.config.signature import Signature
from orchestrator.models.base import DataInitialized, make_body
from orchestrator.models.text import PADDING, TextView, TokenDropout, rows_with, text_view


class TokenWeights(DataInitialized):
    """A weight for each n-gram: log((1 + N) / (1 + n)) + 1 for one that n of N train rows have (idf,
    Spaerck Jones 1972, https://doi.org/10.1108/eb026526), 0 for padding and for one that no train row has,
    whose embedding says nothing; 1 each before it is set."""

    keeps_float32 = True
    from_rows = None  # what is rare is rare among all
    weights: Tensor
    """float32 [size]"""

    def __init__(self, view: TextView) -> None:
        super().__init__()
        self._take = view
        self.register_buffer("weights", torch.ones(view.size).index_fill_(0, torch.tensor([PADDING]), 0.0))

    def initialize(self, blocks: Iterable[Tensor]) -> None:
        """Count in rows int32 [n, sum of lengths]."""
        rows, counts = 0, torch.zeros(len(self.weights), dtype=torch.int64)
        for block in blocks:
            rows += len(block)
            counts += rows_with(self._take(block), len(self.weights))
        idf = ((1 + rows) / (1 + counts)).log() + 1
        self.weights.copy_(idf * (counts > 0))
        self.weights[PADDING] = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        """int32 [B, L] -> float32 [B, L] of length 1 in each row that has an n-gram."""
        found = self.weights[ids]
        return found / found.square().sum(1, keepdim=True).clamp_min(1e-6).sqrt()


class Ngrams(nn.Module):
    """Weighted sum of embeddings, and what follows: nothing, a linear, or a small network."""

    def __init__(self, kwargs: TextNgramsKwargs, view: TextView, outputs: int) -> None:
        super().__init__()
        self.view = view
        self.token_dropout = TokenDropout(kwargs.word_dropout, PADDING)
        self.weights = TokenWeights(view)
        if kwargs.weights == "none":
            self.weights.initialized.fill_(1)
        self.embedding = nn.Embedding(view.size, kwargs.dim or outputs, PADDING)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(kwargs.dropout)
        layers: list[nn.Module] = []
        if kwargs.dim is not None:
            if kwargs.hidden is not None:
                layers += [nn.Linear(kwargs.dim, kwargs.hidden), nn.ReLU(), nn.Dropout(kwargs.dropout)]
            layers.append(nn.Linear(kwargs.hidden or kwargs.dim, outputs))
        self.head = nn.Sequential(*layers)

    def vocabulary(self) -> tuple[nn.Module, nn.Module, int]:
        """See `orchestrator.runtime.vocabulary`."""
        return self.embedding, self.view, PADDING

    def forward(self, x: Tensor) -> Tensor:
        """int32 [B, sum of lengths] -> [B, outputs]."""
        ids = self.token_dropout(self.view(x))
        out: Tensor = self.head(self.dropout(self._sum(ids, self.weights(ids))))
        return out

    def _sum(self, ids: Tensor, weights: Tensor) -> Tensor:
        """int32 [B, L] and float32 [B, L] -> [B, dim]."""
        if type(self.embedding) is nn.Embedding and not torch.compiler.is_compiling():
            # The same in one kernel, which compilers do not have: theirs fuse the sum below.
            table = self.embedding.weight
            return functional.embedding_bag(
                ids, table, mode="sum", per_sample_weights=weights.to(table.dtype), padding_idx=PADDING
            )
        vectors = self.embedding(ids)
        out: Tensor = (weights.to(vectors.dtype)[:, :, None] * vectors).sum(1)
        return out


@make_body.register
def text_ngrams(settings: TextNgrams, signature: Signature) -> nn.Module:
    """fastText's classifier (Joulin et al. 2016, https://arxiv.org/abs/1607.01759), with idf weights.

    Raises:
        ModelError: the rows are not text, or have no such segment.
    """
    view = text_view(signature, "text_ngrams", settings.kwargs.view, ("ngrams",))
    return Ngrams(settings.kwargs, view, signature.outputs)
