"""A small transformer over the tokens of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.model import TextTransformer, TextTransformerKwargs
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body
from orchestrator.models.text import PADDING, UNKNOWN, TextView, TokenDropout, text_view
from orchestrator.models.vit import Blocks


class TextEncoder(nn.Module):
    """Token and position embeddings, encoder blocks that do not see padding, mean over tokens, linear
    head."""

    def __init__(self, kwargs: TextTransformerKwargs, view: TextView, outputs: int) -> None:
        super().__init__()
        self.view = view
        self.token_dropout = TokenDropout(kwargs.word_dropout, UNKNOWN)
        self.embedding = nn.Embedding(view.size, kwargs.dim, PADDING)
        self.positions = nn.Parameter(torch.empty(1, view.length, kwargs.dim))
        for part in (self.embedding.weight, self.positions):
            nn.init.trunc_normal_(part, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0.0
        self.dropout = nn.Dropout(kwargs.dropout)
        self.encoder = Blocks(kwargs)
        self.head = nn.Linear(kwargs.dim, outputs)

    def vocabulary(self) -> tuple[nn.Module, nn.Module, int]:
        """See `orchestrator.runtime.vocabulary`."""
        return self.embedding, self.view, UNKNOWN

    def forward(self, x: Tensor) -> Tensor:
        """int32 [B, sum of lengths] -> [B, outputs]."""
        ids = self.token_dropout(self.view(x))
        # The first place always counts: an empty text has an answer too.
        seen = ids.ne(PADDING) | torch.arange(ids.shape[1], device=ids.device).eq(0)
        tokens = self.dropout(self.embedding(ids) + self.positions[:, : ids.shape[1]])
        out: Tensor = self.head(self.dropout(self.encoder(tokens, seen)))
        return out


@make_body.register
def text_transformer(settings: TextTransformer, signature: Signature) -> nn.Module:
    """The encoder of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762) with norms first (Xiong et
    al. 2020, https://arxiv.org/abs/2002.04745).

    Raises:
        ModelError: the rows are not text, or have no such segment.
    """
    view = text_view(signature, "text_transformer", settings.kwargs.view, ("tokens",))
    return TextEncoder(settings.kwargs, view, signature.outputs)
