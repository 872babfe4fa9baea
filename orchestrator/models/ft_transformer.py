"""A transformer whose tokens are the columns of a table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.model import FtTransformer, FtTransformerKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import make_body
from orchestrator.models.table import Columns
from orchestrator.models.vit import Encoder


class TableTransformer(nn.Module):
    """Each number times a vector of its own plus another, each category's embedding, and a token for the
    answer."""

    takes_float32 = True

    def __init__(self, kwargs: FtTransformerKwargs, columns: Columns, outputs: int) -> None:
        super().__init__()
        self.columns = columns
        numbers, dim = len(columns.numbers), kwargs.dim
        self.slopes = nn.Parameter(torch.empty(1, numbers, dim))
        self.offsets = nn.Parameter(torch.empty(1, numbers, dim))
        self.answer = nn.Parameter(torch.empty(1, 1, dim))
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in columns.sizes)
        for part in (self.slopes, self.offsets, self.answer, *(table.weight for table in self.tables)):
            nn.init.uniform_(part, -(dim**-0.5), dim**-0.5)  # type: ignore[arg-type]
        hidden = max(1, round(dim * kwargs.mlp_ratio))
        self.blocks = nn.Sequential(
            *(Encoder(dim, kwargs.heads, hidden, kwargs.dropout) for _ in range(kwargs.depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.relu = nn.ReLU()
        self.head = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, F] -> [B, outputs]."""
        numbers, codes = self.columns(x)
        scaled = numbers.to(self.slopes.dtype)[:, :, None] * self.slopes + self.offsets
        categories = [table(codes[:, place])[:, None] for place, table in enumerate(self.tables)]
        tokens = torch.cat([self.answer.expand(x.shape[0], -1, -1), scaled, *categories], dim=1)
        out: Tensor = self.head(self.relu(self.norm(self.blocks(tokens)[:, 0])))
        return out


@make_body.register
def ft_transformer(settings: FtTransformer, signature: Signature) -> nn.Module:
    """Gorishniy et al. 2021, "Revisiting deep learning models for tabular data"
    (https://arxiv.org/abs/2106.11959), section 3.3.

    Raises:
        ModelError: the rows are not columns.
    """
    if len(signature.input_shape) != 1 or signature.input_dtype != "float32":
        raise ModelError(
            "ft_transformer needs rows of columns; the rows have the shape",
            list(signature.input_shape),
            "use vit for images",
        )
    return TableTransformer(settings.kwargs, Columns(signature), signature.outputs)
