"""What text models share: the segment of a row that a model reads, and dropout of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.config.encoding import Segment, TextEncoding
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError

PADDING = 0
UNKNOWN = 1


class TextView(nn.Module):
    """Takes one segment of each row.

    Run eagerly, columns that are padding in every row are left out, so that short texts cost less. A
    graph that is exported or compiled has the segment's whole length.
    """

    def __init__(self, segment: Segment, start: int, least: int = 1) -> None:
        """Take `segment` from column `start` on; at least `least` columns are always given."""
        super().__init__()
        self.start, self.size = start, segment.size
        self.length, self.least = segment.length, min(least, segment.length)

    def forward(self, x: Tensor) -> Tensor:
        """int32 [B, sum of lengths] -> int32 [B, L] from 0 to size - 1; what lies outside is cut to that."""
        ids = x[:, self.start : self.start + self.length].clamp(0, self.size - 1)
        if torch.compiler.is_compiling():
            return ids
        used = ids.ne(PADDING).any(0).nonzero()
        stop = int(used[-1]) + 1 if len(used) else 0
        return ids[:, : max(stop, self.least)]


class TokenDropout(nn.Module):
    """In training a share of the tokens is replaced (word dropout, Iyyer et al. 2015,
    https://aclanthology.org/P15-1162)."""

    def __init__(self, share: float, by: int) -> None:
        super().__init__()
        self.share, self.by = share, by

    def forward(self, ids: Tensor) -> Tensor:
        """int32 [B, L] -> the same; padding stays padding."""
        if not self.training or not self.share:
            return ids
        gone = (torch.rand(ids.shape, device=ids.device) < self.share) & ids.ne(PADDING)
        return ids.masked_fill(gone, self.by)


def rows_with(ids: Tensor, size: int) -> Tensor:
    """How many rows of `ids` [N, L] have each number, int64 [size]; needs no more memory than `ids`."""
    ordered = ids.sort(1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:].ne(ordered[:, :-1])
    return torch.bincount(ordered[first], minlength=size)


def text_view(
    signature: Signature,
    architecture: str,
    view: str | None,
    kinds: Sequence[Literal["tokens", "ngrams"]],
    least: int = 1,
) -> TextView:
    """The segment named `view`, or the first one of the given kinds.

    Raises:
        ModelError: the rows are not text, or have no such segment.
    """
    encoding = signature.encoding
    if not isinstance(encoding, TextEncoding):
        raise ModelError(
            f"{architecture} needs text; the rows have the shape",
            list(signature.input_shape),
            "decode a column as text, or choose another factory",
        )
    start = 0
    for segment in encoding.segments:
        if segment.kind in kinds and view in (None, segment.name):
            return TextView(segment, start, least)
        start += segment.length
    known = ", ".join(f"{segment.name} ({segment.kind})" for segment in encoding.segments)
    raise ModelError(
        f"{architecture} reads {' or '.join(kinds)}; the text has no such segment",
        view or known,
        f"the text has {known}",
    )
