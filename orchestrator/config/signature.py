"""What a model takes and gives: recorded in every artifact, so that it is rebuilt without data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.base import Settings, absent
from orchestrator.config.encoding import Encoding

Task = Literal["classification", "multilabel", "regression"]


class Signature(Settings):
    """Input and output of a model.

    Images are `uint8` [B, C, H, W]; feature rows `float32` [B, F]; numbers of tokens `int32` [B, L]; sound
    `int16` [B, T]. Scaling is the first layer of the model, so clients send raw values: `(x - mean) / std`
    per channel (pixels on their 0..255 scale) or per feature. A regression model gives raw units:
    `out * target_std + target_mean` is its last layer.
    """

    task: Task
    input_shape: tuple[int, ...] = Field(min_length=1)
    """Shape of one row, without the batch."""
    input_dtype: Literal["uint8", "float32", "int32", "int16"]
    outputs: int = Field(ge=1)
    """Number of classes or labels, or of regression targets."""
    classes: tuple[str, ...] = ()
    """Names of classes, or of labels, in their order; empty for regression."""
    mean: tuple[float, ...]
    """Per channel (images) or per feature (rows), from the training part; one value counts for all, and
    without any the network gets its rows unscaled and in their own type."""
    std: tuple[float, ...]
    target_mean: tuple[float, ...] = ()
    """Per target, from the training part; regression only."""
    target_std: tuple[float, ...] = ()
    encoding: Encoding | None = Field(None, exclude_if=absent)
    """How raw values (text, sound, named columns) become such rows; without it rows are sent as they are."""


def are_named(classes: tuple[str, ...]) -> bool:
    """Whether labels have names: whole numbers without names are called by themselves."""
    return classes != tuple(str(label) for label in range(len(classes)))
