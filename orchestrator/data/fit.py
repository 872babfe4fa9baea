"""Encodings fitted to train rows.

Everything is counted and sorted with ties broken by name, and trained in one thread: the same rows give the
same encoding in every process.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch
from itertools import chain, count
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from orchestrator.config.decode import (
    AudioDecode,
    Decode,
    FeaturesDecode,
    NgramsView,
    SubwordsView,
    TextDecode,
    WordsView,
)
from orchestrator.config.encoding import (
    AudioEncoding,
    Category,
    Column,
    Encoding,
    NgramHashes,
    Number,
    Segment,
    TableEncoding,
    TextEncoding,
    Tokens,
)
from orchestrator.data.audio import sound_of
from orchestrator.data.dataset import Array
from orchestrator.data.table import category_names
from orchestrator.data.text import FILLING_TOKEN, UNKNOWN_TOKEN, numbers, read_texts
from orchestrator.errors import DataError

WHOLE_TEXTS = 0.99
"""Share of train texts that a fitted length does not cut."""
WHOLE_SOUNDS = 0.95
MOST_TOKENS = 512
"""A fitted length; the run file may name a larger one. Attention takes the square of it."""
MOST_NGRAMS = 1024
MOST_SECONDS = 30.0
_PARALLEL = "TOKENIZERS_PARALLELISM"


@singledispatch
def fit(decode: object, blocks: Iterable[Any], origin: str, rows: Iterable[int] | None = None) -> Encoding:
    """The encoding of train rows.

    Args:
        decode: of the run file.
        blocks: raw values of train rows, some at a time, as `encode` takes them; columns of numbers as float
            arrays with NaN for missing ones, columns of categories as lists.
        origin: what they are rows of, for errors.
        rows: their numbers there; from 0 on when not given.

    Raises:
        DataError: nothing can be fitted to the rows, or a value is damaged.
    """
    raise DataError(f"nothing is fitted to rows of {origin}", f"{type(decode).__name__}, {blocks}, {rows}")


@singledispatch
def decode_of(encoding: Encoding) -> Decode:
    """How a file is read that an encoding is to encode."""
    assert isinstance(encoding, TextEncoding)
    return TextDecode()


@decode_of.register
def _sound(_: AudioEncoding) -> Decode:
    return AudioDecode()


@decode_of.register
def _columns(encoding: TableEncoding) -> Decode:
    categories = tuple(column.name for column in encoding.columns if isinstance(column, Category))
    return FeaturesDecode(categories=categories)


def columns_of(encoding: Encoding | None) -> tuple[str, ...]:
    """Names of a table's columns; none of other encodings."""
    return tuple(column.name for column in encoding.columns) if isinstance(encoding, TableEncoding) else ()


@fit.register
def _text(
    decode: TextDecode, blocks: Iterable[Sequence[Any]], origin: str, rows: Iterable[int] | None = None
) -> Encoding:
    texts = [read_texts([value], row, origin)[0] for row, value in _numbered(blocks, rows)]
    return TextEncoding(segments=tuple(segment_of(view, name, texts) for name, view in decode.views.items()))


@singledispatch
def segment_of(view: object, name: str, texts: Sequence[str]) -> Segment:
    """A view fitted to texts.

    Raises:
        DataError: there is no such view.
    """
    raise DataError(f"no view of {len(texts)} texts", f"{name}: {type(view).__name__}")


@segment_of.register
def _words(view: WordsView, name: str, texts: Sequence[str]) -> Segment:
    normalizer, splitter = _normalizer(view.lowercase), pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    known = most_frequent(counts, view.least, view.vocabulary - 2)
    vocabulary = {word: number for number, word in enumerate((FILLING_TOKEN, UNKNOWN_TOKEN, *known))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    return _tokens(made, name, view.length, texts)


@segment_of.register
def _subwords(view: SubwordsView, name: str, texts: Sequence[str]) -> Segment:
    made = Tokenizer(models.BPE())
    made.normalizer = _normalizer(view.lowercase)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=view.vocabulary,
        min_frequency=view.least,
        special_tokens=[FILLING_TOKEN, UNKNOWN_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with _one_thread():
        made.train_from_iterator(texts, trainer, length=len(texts))
    plain = json.loads(made.to_str())
    # Special tokens would be found in what clients write.
    plain["added_tokens"] = []
    return _tokens(Tokenizer.from_str(json.dumps(plain)), name, view.length, texts)


@segment_of.register
def _ngrams(view: NgramsView, name: str, texts: Sequence[str]) -> Segment:
    longest = NgramHashes(
        name=name,
        length=view.length or MOST_NGRAMS,
        size=view.vocabulary,
        words=view.words,
        characters=view.characters,
        lowercase=view.lowercase,
    )
    if view.length is not None:
        return longest
    return longest.model_copy(update={"length": _enough(longest, texts, MOST_NGRAMS)})


def _tokens(made: Tokenizer, name: str, length: int | None, texts: Sequence[str]) -> Tokens:
    longest = Tokens(
        name=name, length=length or MOST_TOKENS, size=made.get_vocab_size(), tokenizer=made.to_str()
    )
    if length is not None:
        return longest
    return longest.model_copy(update={"length": _enough(longest, texts, MOST_TOKENS)})


def _enough(segment: Segment, texts: Sequence[str], most: int) -> int:
    lengths = sorted(len(numbers(segment, text)) for text in texts)
    return min(most, max(1, lengths[math.ceil(WHOLE_TEXTS * len(lengths)) - 1]))


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    return normalizers.Sequence(steps)


def _numbered(blocks: Iterable[Sequence[Any]], rows: Iterable[int] | None) -> Iterator[tuple[int, Any]]:
    return zip(count() if rows is None else rows, chain.from_iterable(blocks), strict=False)


def most_frequent(counts: Mapping[str, int], least: int, most: int) -> list[str]:
    """The most frequent names, ties in order of the name; at most `most`, each counted `least` times."""
    ranked = sorted((name for name, count in counts.items() if count >= least), key=lambda n: (-counts[n], n))
    return ranked[:most]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Without threads of the library, which a later fork of this process would not survive."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before


@fit.register
def _audio(
    decode: AudioDecode, blocks: Iterable[Sequence[Any]], origin: str, rows: Iterable[int] | None = None
) -> Encoding:
    rates: Counter[int] = Counter()
    seconds = []
    for row, value in _numbered(blocks, rows):
        samples, rate = sound_of(value, decode.rate, f"row {row} of {origin}")
        rates[rate] += 1
        seconds.append(samples / rate)
    rate = decode.rate or min(rates, key=lambda found: (-rates[found], found))
    long = decode.seconds
    if long is None:
        long = min(MOST_SECONDS, sorted(seconds)[math.ceil(WHOLE_SOUNDS * len(seconds)) - 1])
    return AudioEncoding(rate=rate, length=max(1, math.ceil(long * rate)))


@fit.register
def _features(
    decode: FeaturesDecode,
    blocks: Iterable[Mapping[str, Any]],
    origin: str,
    rows: Iterable[int] | None = None,
) -> Encoding:
    given = None if rows is None else list(rows)
    parts: dict[str, list[Any]] = {}
    for block in blocks:
        for name, values in block.items():
            parts.setdefault(name, []).append(values)
    columns = tuple(_column(decode, name, found, origin, given) for name, found in parts.items())
    return TableEncoding(columns=columns)


def _column(
    decode: FeaturesDecode, name: str, parts: Sequence[Any], origin: str, rows: Sequence[int] | None
) -> Column:
    if isinstance(parts[0], np.ndarray):
        values: Array = np.concatenate(parts)
        known = values[~np.isnan(values)]
        if not len(known):
            raise DataError(f"train rows of {origin} have no value in column", name, "leave the column out")
        # Infinite values are refused where rows are encoded, with their place.
        finite = known[np.isfinite(known)]
        return Number(name=name, fill=float(np.median(finite)) if len(finite) else 0.0)
    counts = Counter(category_names(list(chain.from_iterable(parts)), name, origin, rows))
    counts.pop(None, None)
    if not counts:
        raise DataError(f"train rows of {origin} have no value in column", name, "leave the column out")
    values_ = most_frequent(
        {str(key): times for key, times in counts.items()}, decode.least, decode.vocabulary
    )
    return Category(name=name, values=tuple(sorted(values_)))
