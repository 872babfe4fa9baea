"""Small specs whose clients send text, sound and named columns, with values that show how they are read."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from deployments.front import Front
from deployments.protocol.model import describe
from orchestrator.config.encoding import (
    AudioEncoding,
    Category,
    NgramHashes,
    Number,
    TableEncoding,
    TextEncoding,
    Tokens,
)
from orchestrator.config.serving import ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.data.encode import encode, row_dtype, row_shape
from tests.deployments.listening import served
from tests.deployments.models import MIX, spec

WORDS = ("[FILL]", "[UNK]", "book", "a", "flight", "to", "rome", "play", "some", "jazz")


def _tokenizer() -> str:
    found = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.pre_tokenizer = Whitespace()
    text: str = found.to_str()
    return text


TEXT = TextEncoding(
    segments=(
        Tokens(name="words", length=4, size=len(WORDS), tokenizer=_tokenizer()),
        NgramHashes(name="grams", length=6, size=64),
    )
)
AUDIO = AudioEncoding(rate=8000, length=80)
TABLE = TableEncoding(
    columns=(
        Number(name="age", fill=40.0),
        Category(name="color", values=("blue", "red", "3")),
        Number(name="hours per week", fill=38.5),
    )
)


def signature(encoding: Any, outputs: int = 2) -> Signature:
    return Signature(
        task="classification",
        input_shape=row_shape(encoding),
        input_dtype=row_dtype(encoding),
        outputs=outputs,
        classes=tuple(f"class {place}" for place in range(outputs)),
        mean=(),
        std=(),
        encoding=encoding,
    )


SIGNATURES = {"text": signature(TEXT), "audio": signature(AUDIO), "table": signature(TABLE)}
SPECS = {name: spec(MIX, found, name) for name, found in SIGNATURES.items()}
MODELS = {name: describe(found) for name, found in SPECS.items()}

TEXTS = ["book a flight to rome", "", "play some jazz", "né\0 à"]
TONE = np.round(12000 * np.sin(np.arange(60) / 4)).astype(np.int16)
ROWS: list[dict[str, Any]] = [
    {"age": 30, "color": "red", "hours per week": 40.5},
    {"age": None, "color": None, "hours per week": 20},
    {"age": 61.25, "color": "mauve", "hours per week": None},
    {"age": 18, "color": "3", "hours per week": 0},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def wav(samples: np.ndarray = TONE, *, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    """A PCM WAV file of int16 samples."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).astype("<i2").tobytes())
    return buffer.getvalue()


SOUNDS = [wav(), wav(TONE[:13]), wav(np.repeat(TONE, 2), rate=16000, channels=2)]


def encoded(name: str, values: Any) -> np.ndarray:
    """Rows as the ensemble gets them."""
    return encode(SIGNATURES[name].encoding, values)


def raw_front(**limits: float) -> Front:
    """The three models, whose answers a test can foretell by `listening.expected`."""
    settings = ServingSettings.model_validate({"deadline_s": 10, "max_body_bytes": 2**20, **limits})
    return Front([served(model) for model in MODELS.values()], settings)
