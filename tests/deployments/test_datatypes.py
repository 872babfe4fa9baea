from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from deployments.protocol import datatypes
from deployments.protocol.datatypes import WIRE
from deployments.protocol.errors import ProtocolError
from deployments.protocol.model import describe
from deployments.protocol.rest import Codec
from tests.deployments.models import FEATURES, IMAGES, spec
from tests.deployments.pictures import encoded, png

IMAGE = Codec(describe(spec(signature=IMAGES)))
FEATURE = Codec(describe(spec(signature=FEATURES)))
WHOLE = [name for name in WIRE if "INT" in name]
WORTH_TRYING = {name: [np.iinfo(WIRE[name]).min, 0, 1, np.iinfo(WIRE[name]).max] for name in WHOLE}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_through_json_and_bytes(name: str) -> None:
    values = np.array(WORTH_TRYING[name], WIRE[name])
    raw = memoryview(datatypes.to_bytes(name, values))
    assert datatypes.from_bytes(name, raw, (4,)).tolist() == WORTH_TRYING[name]
    assert (
        datatypes.from_json(name, json.loads(json.dumps(values.tolist())), (4,)).tolist()
        == WORTH_TRYING[name]
    )
    for beyond in (WORTH_TRYING[name][0] - 1, WORTH_TRYING[name][3] + 1):
        with pytest.raises(ProtocolError, match=rf"{name} data must be -?\d+\.\.\d+: {beyond}"):
            datatypes.from_json(name, [beyond], (1,))


@pytest.mark.parametrize("offset", range(8))
def test_floats_behind_a_header_of_any_length_are_aligned(offset: int) -> None:
    values = np.array([1.5, -2.0, 3e38], np.float32)
    body = memoryview(bytes(offset) + values.tobytes())
    found = datatypes.from_bytes("FP32", body[offset:], (3,))
    assert found.flags.aligned
    np.testing.assert_array_equal(found, values)


def test_bf16_is_the_upper_half_of_fp32() -> None:
    raw = struct.pack("<3H", 0x3F80, 0xC000, 0x7F7F)
    found = datatypes.from_bytes("BF16", memoryview(raw), (3,))
    assert found.tolist() == [1.0, -2.0, np.frombuffer(b"\0\0\x7f\x7f", "<f4")[0]]


def test_bool_is_a_byte() -> None:
    assert datatypes.from_bytes("BOOL", memoryview(b"\0\1"), (2,)).tolist() == [False, True]
    with pytest.raises(ProtocolError, match="BOOL must be 0 or 1: 2"):
        datatypes.from_bytes("BOOL", memoryview(b"\0\2"), (2,))
    assert datatypes.from_json("BOOL", [True, False], (2,)).tolist() == [True, False]
    with pytest.raises(ProtocolError, match="BOOL data must be true or false: 1"):
        datatypes.from_json("BOOL", [True, 1], (2,))


@pytest.mark.parametrize("name", ["FP16", "BF16"])
def test_halves_have_no_form_in_json(name: str) -> None:
    with pytest.raises(ProtocolError, match="has no form in JSON"):
        datatypes.from_json(name, [1.0], (1,))


def test_elements_may_hold_anything() -> None:
    held = [b"", b"a\0b", "é".encode(), bytes(300)]
    raw = b"".join(struct.pack("<I", len(one)) + one for one in held)
    assert datatypes.elements(memoryview(raw), 4) == held
    assert datatypes.strings(["", "a\0b", "é"], 3) == [b"", b"a\0b", "é".encode()]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "ends after: 0"),
        (b"\1\0\0", "ends after: 0"),
        (b"\2\0\0\0a", "longer than its tensor: 2"),
        (b"\xff\xff\xff\xffa", "longer than its tensor"),
        (b"\1\0\0\0ab", "bytes behind them: 1"),
    ],
)
def test_bad_elements(raw: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        datatypes.elements(memoryview(raw), 1)


@pytest.mark.parametrize("data", [["a", 1], ["\ud800"], ["a", "b", "c"], "ab", [["a"], ["b"], ["c"]]])
def test_bad_strings(data: Any) -> None:
    with pytest.raises(ProtocolError):
        datatypes.strings(data, 2)


@pytest.mark.parametrize(
    ("datatype", "value", "wanted", "says"),
    [
        ("INT16", 256, "UINT8", "INT16 data must be 0..255 for a UINT8 model: 256"),
        ("INT8", -1, "UINT8", "0..255"),
        ("UINT64", 2**64 - 1, "UINT8", "0..255"),
        ("FP32", 1.5, "UINT8", "whole numbers for a UINT8 model: 1.5"),
        ("FP64", np.nan, "UINT8", "whole numbers"),
        ("FP64", np.inf, "UINT8", "0..255"),
        ("FP16", -1.0, "UINT8", "0..255"),
        (
            "FP32",
            2.0**31,
            "INT32",
            "-2147483648..2147483647 for a INT32 model: 2147483648.0",
        ),
        ("FP16", 2.0**15, "INT16", "-32768..32767 for a INT16 model: 32768.0"),
        ("INT32", 2**24 + 1, "FP32", "to be the same as FP32: 16777217"),
        ("INT64", -(2**63), "FP32", "to be the same"),
        ("UINT64", 2**64 - 1, "FP32", "to be the same"),
        ("FP64", 1e39, "FP32", "finite numbers in FP32: 1e\\+39"),
        ("FP32", np.nan, "FP32", "finite"),
        ("FP16", np.inf, "FP32", "finite"),
    ],
)
def test_values_that_would_not_be_the_same(datatype: str, value: float, wanted: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        datatypes.fit(np.array([0, value], WIRE[datatype]), datatype, wanted)


def test_values_at_the_edge_are_the_same() -> None:
    edge = np.array([-(2**24), 2**24], np.int64)
    assert datatypes.fit(edge, "INT64", "FP32").tolist() == edge.tolist()
    assert datatypes.fit(np.array([0.0, 255.0]), "FP64", "UINT8").tolist() == [0, 255]
    assert datatypes.fit(np.array([-(2.0**31)], np.float32), "FP32", "INT32").tolist() == [-(2**31)]
    assert datatypes.fit(np.array([0.1]), "FP64", "FP32").dtype == np.float32


def test_a_bare_tensor_is_the_whole_body() -> None:
    rows = np.arange(12, dtype=np.uint8)
    request = IMAGE.decode(rows.tobytes(), "0")
    assert request.rows.shape == (2, 1, 2, 3)
    assert request.rows.ravel().tolist() == rows.tolist()
    assert request.outputs == (("probabilities", True), ("label", True))
    numbers = np.array([[1.5, 2, 3]], np.float32)
    np.testing.assert_array_equal(FEATURE.decode(numbers.tobytes(), "0").rows, numbers)


@pytest.mark.parametrize("body", [b"", bytes(5), bytes(7)])
def test_a_bare_tensor_is_whole_rows(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"rows of 6 bytes, got: {len(body)}"):
        IMAGE.decode(body, "0")


def image_files(*files: bytes, shape: list[int] | None = None) -> tuple[bytes, str]:
    raw = b"".join(struct.pack("<I", len(one)) + one for one in files)
    tensor = {
        "name": "input",
        "datatype": "BYTES",
        "shape": shape or [len(files)],
        "parameters": {"binary_data_size": len(raw)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + raw, str(len(header))


def test_elements_of_an_image_model_are_files() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    for shape in ([2], [2, 1]):
        request = IMAGE.decode(*image_files(png(rows[0]), png(rows[1]), shape=shape))
        np.testing.assert_array_equal(request.rows, rows)
    large = np.full((1, 40, 60), 77, np.uint8)
    assert (IMAGE.decode(*image_files(encoded(large, "JPEG"))).rows == 77).all()


@pytest.mark.parametrize("files", [[b"x"], [png(np.zeros((1, 2, 3), np.uint8))[:45]]])
def test_damaged_files_are_refused(files: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="row 0"):
        IMAGE.decode(*image_files(*files))


def test_features_are_no_files() -> None:
    with pytest.raises(ProtocolError, match=r"BYTES are image files, but the model's rows are: \[3\]"):
        FEATURE.decode(*image_files(b"x"))


def test_a_header_that_was_seen_before_does_not_stand_for_another_body() -> None:
    head = {
        "name": "input",
        "datatype": "UINT8",
        "shape": [1, 1, 2, 3],
        "parameters": {"binary_data_size": 6},
    }
    header = json.dumps({"inputs": [head]}).encode()
    for first in range(3):
        rows = IMAGE.decode(header + bytes([first] * 6), str(len(header))).rows
        assert rows.ravel().tolist() == [first] * 6
    with pytest.raises(ProtocolError, match="has 5 bytes behind its header"):
        IMAGE.decode(header + bytes(5), str(len(header)))


def test_an_answer_that_was_made_before_does_not_stand_for_another() -> None:
    body = json.dumps(
        {
            "inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0] * 6}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    request = IMAGE.decode(body, None)
    for epoch, count, degraded in ((0, 1, False), (1, 1, False), (1, 1, True), (1, 2, True)):
        values = {"probabilities": np.zeros((count, 2), np.float32), "label": np.full(count, epoch)}
        found = IMAGE.encode(request, values, {"weight_epoch": epoch, "degraded": degraded})
        said = json.loads(found.body[: found.header_length])
        assert said["parameters"] == {"weight_epoch": epoch, "degraded": degraded}
        assert [output["shape"] for output in said["outputs"]] == [[count, 2], [count]]
        assert found.body.endswith(np.full(count, epoch, "<i8").tobytes())
