"""What an input column holds and how its values become rows; what is fitted is fitted to train rows alone.

The fitted form is `orchestrator.config.encoding`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from orchestrator.config.base import Settings, long_form

MOST_LENGTH = 65_536
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=40)]


class ImageDecode(Settings):
    """Image files; `data.image` says mode and size."""

    kind: Literal["image"] = "image"


class TensorDecode(Settings):
    """Tensors or lists of numbers, all of one shape."""

    kind: Literal["tensor"] = "tensor"


class AudioDecode(Settings):
    """PCM WAV files, or lists of samples at `rate`."""

    kind: Literal["audio"] = "audio"
    rate: int | None = Field(None, ge=1000, le=768_000)
    """Hz that all sounds are resampled to; that of most train rows when not given."""
    seconds: float | None = Field(None, gt=0, le=600)
    """Longer sounds are cut at their end; long enough for 95 % of train rows when not given."""


class WordsView(Settings):
    """Whole words and punctuation marks."""

    kind: Literal["words"] = "words"
    vocabulary: int = Field(20_000, ge=2, le=1_000_000)
    """Most words, the most frequent ones of train rows, with two for filling up and unknown words."""
    least: int = Field(2, ge=1)
    """Occurrences in train rows that make a word known."""
    length: int | None = Field(None, ge=1, le=MOST_LENGTH)
    """Tokens of a row; enough for 99 % of train rows when not given."""
    lowercase: bool = True


class SubwordsView(Settings):
    """Parts of words by byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) of UTF-8
    bytes: no text has an unknown part."""

    kind: Literal["subwords"] = "subwords"
    vocabulary: int = Field(4_000, ge=300, le=1_000_000)
    """Parts in all: 256 bytes, two for filling up and unknown parts, and the joined ones."""
    least: int = Field(2, ge=1)
    """Occurrences in train rows that make two parts one."""
    length: int | None = Field(None, ge=1, le=MOST_LENGTH)
    """Tokens of a row; enough for 99 % of train rows when not given."""
    lowercase: bool = True


class NgramsView(Settings):
    """Hashed n-grams of words and characters; only the length is fitted."""

    kind: Literal["ngrams"] = "ngrams"
    vocabulary: int = Field(100_000, ge=2, le=10_000_000)
    """Numbers that n-grams are hashed to, with the one for filling up."""
    words: tuple[int, int] = (1, 2)
    """Least and most words of an n-gram; [0, 0] for none."""
    characters: tuple[int, int] = (2, 5)
    """Least and most characters of an n-gram within a word; [0, 0] for none."""
    length: int | None = Field(None, ge=1, le=MOST_LENGTH)
    """N-grams of a row; enough for 99 % of train rows when not given."""
    lowercase: bool = True

    @model_validator(mode="after")
    def _ranges(self) -> NgramsView:
        for key in ("words", "characters"):
            least, most = getattr(self, key)
            if not 0 <= least <= most <= 10 or (least == 0 and most > 0):
                raise ValueError(f"{key}: give [least, most] with 1 <= least <= most <= 10, or [0, 0]")
        if self.words[1] == self.characters[1] == 0:
            raise ValueError("there are neither n-grams of words nor of characters")
        return self


View = Annotated[WordsView | SubwordsView | NgramsView, Field(discriminator="kind")]


def _words() -> dict[str, View]:
    return {"words": WordsView()}


class TextDecode(Settings):
    """Text, cut into tokens in one way or in several: a model reads the view that it names."""

    kind: Literal["text"] = "text"
    views: dict[Name, View] = Field(default_factory=_words, min_length=1)


class FeaturesDecode(Settings):
    """Named columns of numbers and categories, so that clients may send rows by column name."""

    kind: Literal["features"] = "features"
    categories: tuple[str, ...] = ()
    """Columns of whole numbers or booleans that are categories; columns of text always are."""
    vocabulary: int = Field(1000, ge=1, le=1_000_000)
    """Most values of a category, the most frequent ones of train rows."""
    least: int = Field(1, ge=1)
    """Occurrences in train rows that make a value known."""


_Kinds = ImageDecode | TensorDecode | AudioDecode | TextDecode | FeaturesDecode
DecodeKind = Literal["image", "tensor", "audio", "text", "features"]


Decode = Annotated[
    _Kinds,
    Field(discriminator="kind"),
    BeforeValidator(
        long_form, json_schema_input_type=DecodeKind | Annotated[_Kinds, Field(discriminator="kind")]
    ),
]
"""`decode: text` is short for `decode: {kind: text}`."""
