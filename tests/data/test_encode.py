"""Raw values to rows: each kind's answer to damaged, empty, long and unknown values."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from orchestrator.config.encoding import (
    AudioEncoding,
    Category,
    NgramHashes,
    Number,
    TableEncoding,
    TextEncoding,
    Tokens,
)
from orchestrator.data.encode import encode, row_dtype, row_shape
from orchestrator.errors import DataError


def tokenizer(*words: str) -> str:
    known = {"<pad>": 0, "<unk>": 1} | {word: number + 2 for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    text: str = made.to_str()
    return text


WORDS = Tokens(name="words", length=4, size=4, tokenizer=tokenizer("play", "music"))
GRAMS = NgramHashes(name="grams", length=6, size=1000, words=(1, 2), characters=(0, 0))
TEXT = TextEncoding(segments=(WORDS, GRAMS))
SOUND = AudioEncoding(rate=8000, length=100)
TABLE = TableEncoding(columns=(Number(name="age", fill=40.0), Category(name="town", values=("Bonn", "Ulm"))))


def wav(samples: Any, rate: int = 8000, width: int = 2, channels: int = 1) -> bytes:
    """PCM of integers in the width's own range."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        values = np.asarray(samples).reshape(-1)
        if width == 1:
            out.writeframes(values.astype(np.uint8).tobytes())
        elif width == 3:
            out.writeframes(b"".join(struct.pack("<i", int(value))[:3] for value in values))
        else:
            out.writeframes(values.astype(f"<i{width}").tobytes())
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoding", "values", "shape", "dtype"),
    [
        (TEXT, ["play"], (10,), "int32"),
        (SOUND, [wav([1, 2])], (100,), "int16"),
        (TABLE, {"age": [1], "town": ["Ulm"]}, (2,), "float32"),
    ],
    ids=["text", "audio", "table"],
)
def test_shape_and_type_are_known_before_a_row_is_there(
    encoding: Any, values: Any, shape: tuple[int, ...], dtype: str
) -> None:
    rows = encode(encoding, values)
    assert (rows.shape, str(rows.dtype)) == ((1, *shape), dtype)
    assert (row_shape(encoding), row_dtype(encoding)) == (shape, dtype)
    none = encode(encoding, {name: [] for name in values} if isinstance(values, dict) else [])
    assert (none.shape, str(none.dtype)) == ((0, *shape), dtype)


def test_words_are_numbered_cut_and_filled_up() -> None:
    rows = encode(TextEncoding(segments=(WORDS,)), ["Play MUSIC", b"play opera", "music " * 9])
    assert rows.tolist() == [[2, 3, 0, 0], [2, 1, 0, 0], [3, 3, 3, 3]]


@pytest.mark.parametrize("text", ["", "  \n\t "], ids=["empty", "white_space"])
def test_a_text_without_tokens_is_one_unknown_token(text: str) -> None:
    assert encode(TEXT, [text]).tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]


def test_ngrams_are_the_same_in_every_process() -> None:
    rows = encode(TextEncoding(segments=(GRAMS,)), ["play music", "Music play", "play"])
    assert rows.min() >= 0
    assert rows.max() < GRAMS.size
    # crc32 of b"wplay", b"wmusic" and b"wplay music": fixed for good, artifacts depend on them.
    expected = [1 + zlib.crc32(gram) % 999 for gram in (b"wplay", b"wmusic", b"wplay music")]
    assert rows[0].tolist() == [*expected, 0, 0, 0]
    assert set(rows[1, :2]) == set(rows[0, :2])
    assert rows[1, 2] != rows[0, 2]


def test_characters_are_read_within_words_and_their_edges() -> None:
    grams = NgramHashes(name="c", length=50, size=10**6, words=(0, 0), characters=(3, 3))
    rows = encode(TextEncoding(segments=(grams,)), ["cat", "cats", "xcat"])
    same = [len(set(rows[0][rows[0] > 0]) & set(row[row > 0])) for row in rows]
    assert same == [3, 2, 2]
    long = encode(TextEncoding(segments=(grams,)), ["x" * 100_000])
    assert (long > 0).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["ok", None], "row 8 of the file is no text: NoneType"),
        (["ok", 3], "row 8 of the file is no text: int"),
        (["ok", b"\xff\xfe"], "row 8 of the file is no Unicode text"),
        (["ok", "\ud800"], "row 8 of the file is no Unicode text"),
    ],
    ids=["none", "number", "bytes", "surrogate"],
)
def test_what_is_no_text_names_its_row(values: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode(TEXT, values, first_row=7, origin="the file")


@pytest.mark.parametrize("json", ["", "{}", "[1"], ids=["empty", "no_model", "cut"])
def test_a_damaged_tokenizer_is_one_sentence(json: str) -> None:
    broken = TextEncoding(segments=(Tokens(name="w", length=2, size=9, tokenizer=json),))
    with pytest.raises(DataError, match="tokenizer is damaged"):
        encode(broken, ["hello"])
    small = TextEncoding(segments=(Tokens(name="w", length=2, size=2, tokenizer=tokenizer("a")),))
    with pytest.raises(DataError, match="beyond its size: 2 of 2"):
        encode(small, ["a"])


def test_sound_is_cut_or_followed_by_silence() -> None:
    short, long = np.arange(-3, 4, dtype=np.int16), np.arange(-150, 150, dtype=np.int16)
    rows = encode(SOUND, [wav(short), wav(long), short, long.astype(np.float32) / 2**15, list(range(5))])
    assert rows[0].tolist() == [*range(-3, 4)] + [0] * 93
    assert rows[1].tolist() == list(range(-150, -50))
    assert (rows[2] == rows[0]).all()
    assert (rows[3] == rows[1]).all()
    assert rows[4, :6].tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("samples", "width"),
    [
        ([0, 128, 255], 1),
        ([-(2**15), 0, 127 * 256], 2),
        ([-(2**23), 0, 127 * 2**16], 3),
        ([-(2**31), 0, 127 * 2**24], 4),
    ],
    ids=["8", "16", "24", "32"],
)
def test_every_width_gives_the_same_samples(samples: list[int], width: int) -> None:
    assert encode(SOUND, [wav(samples, width=width)])[0, :3].tolist() == [-(2**15), 0, 127 * 256]


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 48000, 767_999])
def test_a_tone_keeps_its_pitch_and_loudness_at_any_rate(rate: int) -> None:
    encoding = AudioEncoding(rate=8000, length=800)
    times = np.arange(rate // 5) / rate
    tone = np.rint(20_000 * np.sin(2 * np.pi * 500 * times)).astype(np.int16)
    row = encode(encoding, [wav(np.stack([tone, tone], axis=1), rate=rate, channels=2)])[0]
    expected = 20_000 * np.sin(2 * np.pi * 500 * np.arange(800) / 8000)
    assert np.abs(row[50:] - expected[50:]).max() < 400


def test_silence_and_loud_floats_have_answers() -> None:
    rows = encode(SOUND, [wav([0] * 50), np.zeros(20), np.asarray([1.5, -1.5])])
    assert not rows[:2].any()
    assert rows[2, :2].tolist() == [2**15 - 1, -(2**15)]


WHOLE = wav(range(200))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "no PCM WAV file"),
        (b"OggS" + bytes(60), "no PCM WAV file"),
        (WHOLE[:20], "no PCM WAV file"),
        (WHOLE[:18] + b"\xff" + WHOLE[19:], "no PCM WAV file"),
        (WHOLE[:-100], "is cut off: 150 of 200 samples"),
        (wav([]), "holds no samples"),
        (WHOLE[:20] + struct.pack("<H", 85) + WHOLE[22:], "no PCM WAV file"),
        (wav([1] * 9, rate=5), "unsupported form: 5 Hz"),
        (np.asarray([0.0, np.nan]), "not finite"),
        (np.asarray([0.0, 3000.0]), "beyond -1..1"),
        (np.asarray([0, 40_000]), "beyond 16 bits"),
        (np.zeros((3, 2)), "is no sound"),
        ([[1, 2], [3]], "is no sound"),
        ("RIFF", "is no sound"),
        (None, "is no sound"),
        ([], "no samples|no sound"),
    ],
    ids=[
        "empty", "ogg", "header", "long_chunk", "cut", "no_samples", "mp3_inside", "rate", "nan", "scale",
        "wide", "two_axes", "ragged", "text", "none", "no_list",
    ],
)  # fmt: skip
def test_what_is_no_sound_names_its_row(value: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        encode(SOUND, [WHOLE, value], first_row=4, origin="the file")
    assert "row 5 of the file" in str(caught.value)


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    stream = WHOLE[:4] + b"\xff" * 4 + WHOLE[8:40] + b"\xff" * 4 + WHOLE[44:]
    assert (encode(SOUND, [stream]) == encode(SOUND, [WHOLE])).all()


def test_a_table_fills_numbers_and_knows_unknown_categories() -> None:
    rows = encode(
        TABLE,
        {
            "town": ["Ulm", "Bonn", "Rome", None, ""],
            "age": [1, None, float("nan"), 2.5, True],
            "other": [[], {}, 1, 2, 3],
        },
    )
    assert rows.tolist() == [[1, 2], [40, 1], [40, 0], [2.5, 0], [1, 0]]
    arrays = {"town": np.asarray(["Ulm", "x"], dtype=object), "age": np.asarray([1.0, np.nan])}
    assert encode(TABLE, arrays).tolist() == [[1, 2], [40, 0]]


def test_whole_numbers_and_booleans_are_categories_by_their_json() -> None:
    mixed = TableEncoding(columns=(Category(name="c", values=("3", "true")),))
    assert encode(mixed, {"c": [3, True, "3", 4]}).tolist() == [[1], [2], [1], [0]]
    assert encode(mixed, {"c": np.array([3.0, np.nan, 4.0])}).tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"age": [1]}, "have no column: town"),
        ({"age": [1], "twon": ["Ulm"]}, "did you mean 'twon'"),
        ({"age": [1, 2], "town": ["Ulm"]}, "differ in length"),
        ({"age": [1, "x"], "town": [None, None]}, "row 3 of the rows has no number in column 'age'"),
        (
            {"age": [1, float("inf")], "town": [None, None]},
            "row 3 of the rows has a number that is not finite",
        ),
        ({"age": [1, 1e300], "town": [None, None]}, "not finite"),
        ({"age": [1, 10**400], "town": [None, None]}, "not finite"),
        ({"age": [1, 2], "town": [None, 2.5]}, "row 3 of the rows has no category in column 'town'"),
        ({"age": [1, 2], "town": [None, ["Ulm"]]}, "row 3 of the rows has no category"),
        ([1, 2], "must be columns by name"),
    ],
    ids=["missing", "misspelt", "lengths", "text", "inf", "too_large", "huge", "float", "list", "no_columns"],
)
def test_what_is_no_table_names_its_row_and_column(values: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode(TABLE, values, first_row=2)
