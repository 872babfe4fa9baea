"""How raw values become rows of numbers: what was fitted to train rows, kept in every artifact.

A run file's `data.decode` says what to fit (`orchestrator.config.decode`); the fitted form is part of the
signature, so that a client sends raw values (text, audio, named columns) and every model gets the same rows
of fixed shape.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Settings


class Tokens(Settings):
    """Numbers of tokens: 0 fills up, 1 is an unknown token. A longer text is cut; one without any token is
    one unknown token."""

    kind: Literal["tokens"] = "tokens"
    name: str
    """A model reads the segment by this name."""
    length: int = Field(ge=1)
    size: int = Field(ge=2)
    """Numbers lie in 0..size - 1."""
    tokenizer: str
    """The fitted tokenizer as the JSON of the `tokenizers` library."""


class NgramHashes(Settings):
    """Hashed n-grams of words and of characters within words (Joulin et al. 2016, https://arxiv.org/abs/1607.01759):
    0 fills up, every other number is 1 + hash modulo (size - 1). A text without any word is a single 1."""

    kind: Literal["ngrams"] = "ngrams"
    name: str
    length: int = Field(ge=1)
    size: int = Field(ge=2)
    words: tuple[int, int] = (1, 2)
    """Least and most words of an n-gram; (0, 0) for none."""
    characters: tuple[int, int] = (2, 5)
    """Least and most characters of an n-gram within a word and its two edges; (0, 0) for none."""
    lowercase: bool = True


Segment = Annotated[Tokens | NgramHashes, Field(discriminator="kind")]


class TextEncoding(Settings):
    """Text to `int32` [N, sum of lengths]: all segments one after another, so that members which cut words
    differently share their rows."""

    kind: Literal["text"] = "text"
    segments: tuple[Segment, ...] = Field(min_length=1)


class AudioEncoding(Settings):
    """Sound to `int16` [N, length]: one channel at `rate`, cut or filled up with silence."""

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=1)
    """Hz."""
    length: int = Field(ge=1)
    """Samples."""


class Number(Settings):
    kind: Literal["number"] = "number"
    name: str
    fill: float
    """In place of a missing value: the median of train rows."""


class Category(Settings):
    kind: Literal["category"] = "category"
    name: str
    values: tuple[str, ...]
    """Code k + 1 is value k; 0 is a missing value or one that train rows did not have."""


Column = Annotated[Number | Category, Field(discriminator="kind")]


class TableEncoding(Settings):
    """Named columns to `float32` [N, F]: a number or a category's code each, in this order."""

    kind: Literal["table"] = "table"
    columns: tuple[Column, ...] = Field(min_length=1)


Encoding = Annotated[TextEncoding | AudioEncoding | TableEncoding, Field(discriminator="kind")]
