"""The plain formats of `/predict`: what a body may be, and what the answer looks like.

A body is an image file, the raw bytes of rows, JSON rows, or an Arrow IPC stream. Its media type says which;
without one (or with that of `curl --data-binary`) its first bytes do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deployments.protocol import arrow, images
from deployments.protocol.datatypes import Array, short
from deployments.protocol.errors import ProtocolError, UnsupportedEncodingError
from deployments.protocol.model import Model, Tensor
from deployments.protocol.request import json_rows, raw_rows
from deployments.protocol.rest import Facts, is_json, parse
from orchestrator.measure.tasks import class_rules

ANY_TYPE = ("", "application/x-www-form-urlencoded", "text/plain")
"""Media types that say nothing: a client's defaults."""


def read(body: bytes, media_type: str, expected: Tensor) -> Array:
    """The rows of a body.

    Args:
        body: in one of the formats.
        media_type: the `Content-Type`, or nothing.
        expected: the model's input.

    Raises:
        ProtocolError: they do not fit the model.
        UnsupportedEncodingError: no such format.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if kind in ANY_TYPE:
        kind = _sniff(body)
    if kind == "application/json":
        return _from_json(body, expected)
    if kind.startswith("image/"):
        return images.rows_of([body], expected)
    if kind == "application/vnd.apache.arrow.stream":
        return arrow.read(body, expected)
    if kind == "application/octet-stream":
        return raw_rows(memoryview(body), expected)
    raise UnsupportedEncodingError(
        "the media type is not supported",
        short(media_type),
        "send an image, application/json, application/octet-stream or application/vnd.apache.arrow.stream",
    )


THRESHOLD = 0.5


def answer(
    model: Model, values: Mapping[str, Array], facts: Facts, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """The answer as JSON says it: one object a row, with all outputs by name and the class's name, or of
    several labels the names of those that are there.

    Args:
        model: the model that answered.
        values: its outputs by name.
        facts: about the answer.
        threshold: probability above which one of several labels is there.
    """
    columns = {name: value.tolist() for name, value in values.items()}
    if "labels" in columns:
        there = class_rules("multilabel").chosen(values["probabilities"], threshold)
        columns["labels"] = [[model.classes[place] for place in np.flatnonzero(row)] for row in there]
    elif model.classes:
        columns["class"] = [model.classes[label] for label in columns["label"]]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found: dict[str, Any] = {"model": model.name, "version": model.version, **facts}
    if model.classes:
        found["classes"] = list(model.classes)
    return found | {"predictions": rows}


def _sniff(body: bytes) -> str:
    if images.is_image(body):
        return "image/any"
    if arrow.is_stream(body):
        return "application/vnd.apache.arrow.stream"
    return "application/json" if is_json(body) else "application/octet-stream"


def _from_json(body: bytes, expected: Tensor) -> Array:
    """A list of rows, each nested or flat, or `{"rows": ...}`; a flat list is one row."""
    value = parse(body)
    if isinstance(value, dict):
        if set(value) != {"rows"}:
            raise ProtocolError('send {"rows": [...]}, but the keys are', short(list(value)))
        value = value["rows"]
    if not isinstance(value, list) or not value:
        raise ProtocolError("rows must be a list with something in it", short(value))
    row = expected.shape[1:]
    if not any(isinstance(one, list) for one in value):
        return json_rows(value, expected.datatype, (1, *row), expected)
    if all(isinstance(one, list) and not any(isinstance(x, list) for x in one) for one in value):
        size = math.prod(row)
        if odd := [len(one) for one in value if len(one) != size]:
            raise ProtocolError(f"each row must have {size} numbers, one has", odd[0])
        value = list(itertools.chain.from_iterable(value))
        return json_rows(value, expected.datatype, (len(value) // size, *row), expected)
    return json_rows(value, expected.datatype, (len(value), *row), expected)
