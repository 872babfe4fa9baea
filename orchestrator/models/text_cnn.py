"""Convolutions over the tokens of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.model import TextCnn, TextCnnKwargs
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body
from orchestrator.models.text import PADDING, UNKNOWN, TextView, TokenDropout, text_view


class Convolutions(nn.Module):
    """Embedding, convolutions of several widths side by side, the largest answer of each, linear head.

    Convolutions are two-dimensional over images of height 1: int8 kernels exist for those alone. So much
    padding is added that each sees a window of nothing else, so the answer does not depend on how long rows
    are.
    """

    def __init__(self, kwargs: TextCnnKwargs, view: TextView, outputs: int) -> None:
        super().__init__()
        self.view = view
        self.token_dropout = TokenDropout(kwargs.word_dropout, UNKNOWN)
        self.embedding = nn.Embedding(view.size, kwargs.dim, PADDING)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(kwargs.dim, kwargs.channels, (1, width), padding=(0, width)) for width in kwargs.widths
        )
        self.dropout = nn.Dropout(kwargs.dropout)
        self.head = nn.Linear(kwargs.channels * len(kwargs.widths), outputs)

    def vocabulary(self) -> tuple[nn.Module, nn.Module, int]:
        """See `orchestrator.runtime.vocabulary`."""
        return self.embedding, self.view, UNKNOWN

    def forward(self, x: Tensor) -> Tensor:
        """int32 [B, sum of lengths] -> [B, outputs]."""
        ids = self.token_dropout(self.view(x))
        # Contiguous: of a transposed image of height 1 AOTInductor mistakes the layout (torch 2.13).
        image = self.embedding(ids).transpose(1, 2)[:, :, None, :].contiguous()
        found = [functional.relu(layer(image)).amax((2, 3)) for layer in self.convolutions]
        out: Tensor = self.head(self.dropout(torch.cat(found, dim=1)))
        return out


@make_body.register
def text_cnn(settings: TextCnn, signature: Signature) -> nn.Module:
    """Kim 2014, "Convolutional neural networks for sentence classification" (https://arxiv.org/abs/1408.5882).

    Raises:
        ModelError: the rows are not text, or have no such segment.
    """
    view = text_view(signature, "text_cnn", settings.kwargs.view, ("tokens",))
    return Convolutions(settings.kwargs, view, signature.outputs)
