"""Text to numbers: tokens of a fitted tokenizer, and hashed n-grams.

A text without any token (empty, or white space alone) is one unknown token, so that no row is all filling.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, singledispatch
from itertools import chain, islice

import numpy as np
from tokenizers import Tokenizer

from orchestrator.config.encoding import NgramHashes, TextEncoding, Tokens
from orchestrator.data.dataset import Array
from orchestrator.errors import DataError

FILLING, UNKNOWN = 0, 1
FILLING_TOKEN, UNKNOWN_TOKEN = "<filling up>", "<unknown token>"
"""Names of the two numbers in a tokenizer. No text has such tokens, since they hold a space."""
CACHED_WORD = 32
"""Longest word whose n-grams are kept: what clients send must not fill the memory."""
_WORD = re.compile(r"\w+|[^\w\s]")


def text_rows(encoding: TextEncoding, values: Sequence[object], first_row: int, origin: str) -> Array:
    """`int32` [N, sum of lengths]; see `orchestrator.data.encode.encode`."""
    texts = read_texts(values, first_row, origin)
    segments = [_filled([numbers(segment, text) for text in texts], segment) for segment in encoding.segments]
    return np.concatenate(segments, axis=1)


def read_texts(values: Sequence[object], first_row: int, origin: str) -> list[str]:
    """Values as text.

    Raises:
        DataError: a value is neither text nor UTF-8; it names the row.
    """
    return [_text(value, first_row + row, origin) for row, value in enumerate(values)]


@singledispatch
def numbers(segment: object, text: str) -> list[int]:
    """The numbers of one text in one segment, neither cut nor filled up.

    Raises:
        DataError: the segment's tokenizer is damaged, or does not fit the segment.
    """
    raise DataError(f"no numbers of {len(text)} characters", type(segment).__name__)


@numbers.register
def _tokens(segment: Tokens, text: str) -> list[int]:
    # One by one: the library's batches start threads, which a later fork of the process does not survive.
    found: list[int] = _tokenizer(segment.tokenizer).encode(text, add_special_tokens=False).ids
    if found and max(found) >= segment.size:
        raise DataError(
            f"the tokenizer of segment '{segment.name}' has numbers beyond its size",
            f"{max(found)} of {segment.size}",
        )
    return found


@numbers.register
def _ngrams(segment: NgramHashes, text: str) -> list[int]:
    composed = unicodedata.normalize("NFC", text)
    words = _WORD.findall(composed.lower() if segment.lowercase else composed)
    size, (least, most) = segment.size - 1, segment.words
    joined = (
        " ".join(words[start : start + count])
        for count in range(max(1, least), most + 1)
        for start in range(len(words) - count + 1)
    )
    of_words = (1 + zlib.crc32(b"w" + gram.encode()) % size for gram in joined)
    inside = (_within(word, *segment.characters, size, segment.length) for word in words)
    return list(islice(chain(of_words, chain.from_iterable(inside)), segment.length + 1))


def _within(word: str, least: int, most: int, size: int, length: int) -> Sequence[int]:
    """Hashed n-grams of the characters of a word between its edges `<` and `>`."""
    if most == 0:
        return ()
    if len(word) <= CACHED_WORD:
        return _remembered(word, least, most, size, length)
    return tuple(islice(_hashes(word, least, most, size), length + 1))


@lru_cache(maxsize=1 << 16)
def _remembered(word: str, least: int, most: int, size: int, length: int) -> tuple[int, ...]:
    return tuple(islice(_hashes(word, least, most, size), length + 1))


def _hashes(word: str, least: int, most: int, size: int) -> Iterator[int]:
    edged = f"<{word}>"
    for count in range(max(1, least), most + 1):
        for start in range(len(edged) - count + 1):
            yield 1 + zlib.crc32(b"c" + edged[start : start + count].encode()) % size


@lru_cache(maxsize=64)
def _tokenizer(json: str) -> Tokenizer:
    try:
        found = Tokenizer.from_str(json)
    # The library raises bare Exception.
    except Exception as error:
        raise DataError("a saved tokenizer is damaged", " ".join(str(error).split())) from error
    found.no_padding()
    found.no_truncation()
    return found


def _text(value: object, row: int, origin: str) -> str:
    try:
        text = bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value
        if isinstance(text, str):
            # A lone surrogate is no character; tokenizers cannot take it.
            text.encode()
            return str(text)
    except UnicodeError as error:
        raise DataError(
            f"row {row} of {origin} is no Unicode text", error, "send UTF-8 (rows are counted from 0)"
        ) from error
    raise DataError(f"row {row} of {origin} is no text", type(value).__name__, "rows are counted from 0")


def _filled(found: list[list[int]], segment: Tokens | NgramHashes) -> Array:
    rows = np.full((len(found), segment.length), FILLING, dtype=np.int32)
    for row, ids in zip(rows, found, strict=True):
        kept = (ids or [UNKNOWN])[: segment.length]
        row[: len(kept)] = kept
    return rows
