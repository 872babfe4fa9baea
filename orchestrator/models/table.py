"""Columns of a table as vectors: numbers as they are, categories embedded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.encoding import Category, TableEncoding
from orchestrator.config.signature import Signature

WIDEST = 32
"""Numbers in the largest vector of a category beside numbers."""


class Columns(nn.Module):
    """Splits rows into numbers and codes of categories."""

    numbers: Tensor
    """Where numbers are in a row, int64 [N]."""
    categories: Tensor
    """Where categories are, int64 [C]."""
    largest: Tensor
    """Largest code of each category, int64 [C]."""

    def __init__(self, signature: Signature) -> None:
        """All columns of rows without a table's encoding are numbers."""
        super().__init__()
        encoding = signature.encoding
        known = encoding.columns if isinstance(encoding, TableEncoding) else ()
        self.sizes = [len(column.values) + 1 for column in known if isinstance(column, Category)]
        places = [place for place, column in enumerate(known) if isinstance(column, Category)]
        rest = sorted({*range(signature.input_shape[0])} - {*places})
        for name, values in (
            ("numbers", rest),
            ("categories", places),
            ("largest", [size - 1 for size in self.sizes]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, F] -> numbers float32 [B, N], codes int64 [B, C]; no code of its column counts as
        unknown."""
        codes = x[:, self.categories].nan_to_num(0.0).round().long()
        return x[:, self.numbers], torch.where((codes < 0) | (codes > self.largest), 0, codes)


class Embedded(nn.Module):
    """Numbers, and beside them each category as a vector of half as many numbers as it has codes (Guo
    and Berkhahn 2016, https://arxiv.org/abs/1604.06737)."""

    takes_float32 = True

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        self.columns = columns
        self.tables = nn.ModuleList(
            nn.Embedding(size, min((size + 1) // 2, WIDEST)) for size in columns.sizes
        )
        self.width = len(columns.numbers) + sum(min((size + 1) // 2, WIDEST) for size in columns.sizes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, F] -> [B, width]."""
        numbers, codes = self.columns(x)
        vectors = [table(codes[:, place]) for place, table in enumerate(self.tables)]
        return torch.cat([numbers.to(vectors[0].dtype), *vectors], dim=1)
