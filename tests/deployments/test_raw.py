"""Text, sound and named columns through both encodings of the protocol and `/predict`: what arrives is what
`orchestrator.data.encode` makes of the values."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deployments.protocol import grpc_messages as messages
from deployments.protocol import raw_predict, rest
from deployments.protocol.errors import ProtocolError
from deployments.protocol.model import describe
from deployments.protocol.raw import TEXT_BYTES, Encoder
from deployments.protocol.request import Request
from orchestrator.config.encoding import Category, Number, TableEncoding
from orchestrator.config.serving import ServingSettings
from orchestrator.data.encode import encode
from orchestrator.errors import DeadlineError
from tests.deployments.models import MIX, spec
from tests.deployments.raws import COLUMNS, MODELS, ROWS, SOUNDS, TABLE, TEXTS, TONE, encoded, signature, wav
from tests.deployments.test_predict import ARROW, lists, stream

SERVING = ServingSettings(max_body_bytes=2**18)
CODECS: dict[str, Any] = {name: rest.codec_of(model, SERVING) for name, model in MODELS.items()}
ENCODERS = {name: Encoder(model, SERVING) for name, model in MODELS.items()}


def elements(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def tensor(values: list[Any], datatype: str, name: str = "input", shape: list[int] | None = None) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape or [len(values)], "data": values}


def from_json(name: str, *inputs: Any, **more: Any) -> Request:
    found: Request = CODECS[name].decode(json.dumps({"inputs": list(inputs), **more}).encode(), None)
    return found


def from_binary(name: str, *inputs: tuple[str, str, list[int], bytes]) -> Request:
    tensors = [
        {"name": called, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for called, kind, shape, data in inputs
    ]
    header = json.dumps({"inputs": tensors}).encode()
    body = header + b"".join(data for *_about, data in inputs)
    found: Request = CODECS[name].decode(body, str(len(header)))
    return found


def from_grpc(name: str, *inputs: tuple[str, str, list[int], bytes]) -> Request:
    asked = messages.message("ModelInferRequest")(raw_input_contents=[data for *_about, data in inputs])
    for called, kind, shape, _data in inputs:
        asked.inputs.add(name=called, datatype=kind, shape=shape)
    return messages.decode(asked, MODELS[name], ENCODERS[name])


def test_metadata_and_config_say_what_clients_send() -> None:
    assert MODELS["text"].metadata()["inputs"] == [
        {"name": "input", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "text/plain"}}
    ]
    (sound,) = MODELS["audio"].metadata()["inputs"]
    assert sound["parameters"] == {"content_type": "audio/wav", "rate_hz": 8000}
    columns = [(one["name"], one["datatype"]) for one in MODELS["table"].metadata()["inputs"]]
    assert columns == [("age", "FP32"), ("color", "BYTES"), ("hours per week", "FP32")]
    config = MODELS["table"].config(1200)
    assert [one["data_type"] for one in config["input"]] == ["TYPE_FP32", "TYPE_STRING", "TYPE_FP32"]
    assert config["max_batch_size"] == 100
    assert [list(one.shape) for one in messages.metadata(MODELS["text"]).inputs] == [[-1, 1]]


UTF8 = [text.encode() for text in TEXTS]


@pytest.mark.parametrize("axis", [[], [1]])
def test_text_arrives(axis: list[int]) -> None:
    shape = [len(TEXTS), *axis]
    wanted = encoded("text", TEXTS)
    binary = ("input", "BYTES", shape, elements(UTF8))
    for request in (
        from_json("text", tensor(TEXTS, "BYTES", shape=shape)),
        from_binary("text", binary),
        from_grpc("text", binary),
    ):
        np.testing.assert_array_equal(request.rows, wanted)
        assert request.rows.dtype == np.int32
        assert request.encoded_by == MODELS["text"].encoded_by != ""


def test_text_in_grpc_contents_and_as_a_bare_body() -> None:
    asked = messages.message("ModelInferRequest")()
    one = asked.inputs.add(name="input", datatype="BYTES", shape=[len(TEXTS)])
    one.contents.bytes_contents.extend(UTF8)
    rows = messages.decode(asked, MODELS["text"], ENCODERS["text"]).rows
    np.testing.assert_array_equal(rows, encoded("text", TEXTS))
    np.testing.assert_array_equal(CODECS["text"].decode(UTF8[0], "0").rows, encoded("text", TEXTS[:1]))


def test_tokens_may_be_sent_themselves() -> None:
    wanted = encoded("text", TEXTS)
    for datatype, array in (("INT32", wanted), ("INT64", wanted.astype(np.int64))):
        found = from_binary("text", ("input", datatype, list(array.shape), array.tobytes())).rows
        np.testing.assert_array_equal(found, wanted)
    outside = wanted.copy()
    outside[1, 0] = 10
    with pytest.raises(ProtocolError, match=r"tokens of 'words' must be 0\.\.9: 10"):
        from_binary("text", ("input", "INT32", list(outside.shape), outside.tobytes()))


def test_rows_of_a_table_may_be_sent_encoded() -> None:
    wanted = encoded("table", COLUMNS)
    found = from_binary("table", ("input", "FP32", [4, 3], wanted.tobytes())).rows
    np.testing.assert_array_equal(found, wanted)
    for code in (4.0, -1.0, 0.5):
        outside = wanted.copy()
        outside[2, 1] = code
        with pytest.raises(ProtocolError, match=r"codes of 'color' must be 0\.\.3"):
            from_binary("table", ("input", "FP32", [4, 3], outside.tobytes()))
    with pytest.raises(ProtocolError, match="finite"):
        from_binary("table", ("input", "FP32", [1, 3], np.full(3, np.nan, np.float32).tobytes()))
    with pytest.raises(ProtocolError, match=r"\[rows >= 1, 3\]"):
        from_binary("table", ("input", "FP32", [4], wanted[:, 0].tobytes()))


def test_encoded_rows_of_one_column_may_leave_out_its_axis() -> None:
    for column in TABLE.columns[:2]:  # a number and a category
        model = describe(spec(MIX, signature(TableEncoding(columns=(column,)))))
        rows = (
            rest.codec_of(model, SERVING)
            .decode(json.dumps({"inputs": [tensor([1.0, 2.0], "FP32")]}).encode(), None)
            .rows
        )
        assert rows.tolist() == [[1.0], [2.0]]


def test_files_and_waveforms_arrive() -> None:
    wanted = encoded("audio", SOUNDS)
    binary = ("input", "BYTES", [3], elements(SOUNDS))
    np.testing.assert_array_equal(from_binary("audio", binary).rows, wanted)
    np.testing.assert_array_equal(from_grpc("audio", binary).rows, wanted)
    np.testing.assert_array_equal(CODECS["audio"].decode(SOUNDS[0], "0").rows, wanted[:1])
    assert wanted[0, :60].tolist() == TONE.tolist()
    waves = np.stack([TONE, TONE[::-1]])
    halves = (waves / 2**15).astype(np.float32)
    for datatype, array in (("INT16", waves), ("FP32", halves), ("FP64", halves.astype(np.float64))):
        found = from_binary("audio", ("input", datatype, [2, 60], array.tobytes())).rows
        np.testing.assert_array_equal(found[:, :60], waves)
        assert not found[:, 60:].any()
        listed = from_json("audio", tensor(array.ravel().tolist(), datatype, shape=[2, 60])).rows
        np.testing.assert_array_equal(listed, found)


def test_columns_arrive_in_any_order_with_missing_values() -> None:
    wanted = encoded("table", COLUMNS)
    listed = [
        tensor(COLUMNS["hours per week"], "FP64", "hours per week"),
        tensor(COLUMNS["color"], "BYTES", "color", [4, 1]),
        tensor(COLUMNS["age"], "FP32", "age"),
    ]
    np.testing.assert_array_equal(from_json("table", *listed).rows, wanted)
    numbers = {name: np.array(COLUMNS[name], np.float64) for name in ("age", "hours per week")}
    assert np.isnan(numbers["age"][1])
    colors = elements([(color or "").encode() for color in COLUMNS["color"]])
    binary = (
        ("color", "BYTES", [4, 1], colors),
        ("age", "FP32", [4, 1], numbers["age"].astype(np.float32).tobytes()),
        ("hours per week", "FP64", [4, 1], numbers["hours per week"].tobytes()),
    )
    for request in (from_binary("table", *binary), from_grpc("table", *binary)):
        np.testing.assert_array_equal(request.rows, wanted)
    assert wanted[1].tolist() == [40, 0, 20]


@pytest.mark.parametrize("known", [("blue", "red"), ("", "blue", "red")])
def test_an_empty_category_is_what_it_was_in_training(known: tuple[str, ...]) -> None:
    columns = (Number(name="age", fill=40.0), Category(name="color", values=known))
    table = signature(TableEncoding(columns=columns))
    assert table.encoding is not None
    wanted = encode(table.encoding, {"age": [1.0, 2.0, 3.0], "color": ["", "red", None]})
    assert wanted[0, 1] == (1 if "" in known else 0)
    codec = rest.codec_of(describe(spec(MIX, table, "table")), SERVING)
    inputs = [tensor([1, 2, 3], "FP32", "age"), tensor(["", "red", None], "BYTES", "color")]
    found = codec.decode(json.dumps({"inputs": inputs}).encode(), None)
    np.testing.assert_array_equal(found.rows, wanted)


def test_whole_numbers_are_categories_of_that_name() -> None:
    rows = from_json(
        "table",
        tensor([1], "INT64", "age"),
        tensor([3], "INT64", "color"),
        tensor([2], "INT8", "hours per week"),
    ).rows
    assert rows.tolist() == [[1, 3, 2]]


AGE, COLOR = tensor([1.5], "FP32", "age"), tensor(["red"], "BYTES", "color")
HOURS = tensor([38], "INT64", "hours per week")


@pytest.mark.parametrize(
    ("name", "inputs", "says"),
    [
        ("table", [AGE, COLOR], "no input: 'hours per week'"),
        ("table", [AGE, COLOR, HOURS, tensor([1], "INT64", "x")], "no such input: 'x'"),
        ("table", [AGE, COLOR, tensor([38, 3], "INT64", "hours per week")], "same number of rows"),
        ("table", [tensor(["1"], "BYTES", "age"), COLOR, HOURS], "datatype of 'age' must be one of BOOL"),
        ("table", [tensor([1.0, 2.0], "FP32", "age", [1, 2]), COLOR, HOURS], r"\[rows >= 1, 1\]"),
        ("table", [AGE, tensor([1.5], "FP32", "color"), HOURS], "datatype of 'color'"),
        ("table", [tensor([1e300], "FP64", "age"), COLOR, HOURS], "not finite in column 'age'"),
        ("table", [AGE, AGE, COLOR, HOURS], "same name twice"),
        ("text", [tensor([1], "INT64")], r"\[rows >= 1, 10\]"),
        ("text", [tensor(["a", "b"], "BYTES", shape=[2, 2])], r"\[rows >= 1, 1\]"),
        ("text", [tensor(["a", 1], "BYTES")], "must be strings"),
        ("text", [tensor(["a"], "BYTES", shape=[2])], "needs 2 strings"),
        ("text", [tensor(["a\ud800"], "BYTES")], "UTF-8"),
        ("text", [tensor([], "BYTES", shape=[0])], "rows >= 1"),
        ("text", [tensor([1.5], "FP32")], "must be one of BYTES, INT32, INT64"),
        ("audio", [tensor(["RIFF"], "BYTES")], "row 0 of the request is no PCM WAV file"),
        ("audio", [tensor([], "FP32", shape=[1, 0])], r"\[rows >= 1, any\]"),
        ("audio", [tensor([9.0, 1.0], "FP32", shape=[1, 2])], r"beyond -1\.\.1"),
        ("audio", [tensor([40000], "INT16", shape=[1, 1])], "INT16 data must be"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, inputs: list[Any], says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        from_json(name, *inputs)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("text", elements([b"\xff\xfe"]), "row 0 of the request is no Unicode text"),
        ("text", elements([b"a"]) + b"x", "bytes behind them"),
        ("audio", elements([wav()[:30]]), "no PCM WAV"),
        ("audio", elements([wav()[:60]]), "cut off"),
        ("audio", elements([b""]), "no PCM WAV"),
    ],
)
def test_damaged_elements(name: str, data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        from_binary(name, ("input", "BYTES", [1], data))


def test_rows_and_texts_are_bounded() -> None:
    most = ENCODERS["text"].most_rows
    assert most == 2**18 // 40
    with pytest.raises(ProtocolError, match=f"at most {most} rows") as caught:
        from_binary("text", ("input", "BYTES", [most + 1], elements([b""] * (most + 1))))
    assert caught.value.status == 413
    long = b"a" * (TEXT_BYTES + 1)
    for body in (elements([b"ok", long]), elements([long, b""])):
        with pytest.raises(ProtocolError, match=f"at most {TEXT_BYTES} bytes: row") as caught:
            from_binary("text", ("input", "BYTES", [2], body))
        assert caught.value.status == 413
    just = "é" * (TEXT_BYTES // 2)
    assert len(raw_predict.read(just.encode(), "text/plain", ENCODERS["text"])) == 1
    with pytest.raises(ProtocolError, match="at most"):
        raw_predict.read(json.dumps([just + "a"]).encode(), "application/json", ENCODERS["text"])


def test_encoding_ends_with_the_time_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 40.0])
    monkeypatch.setattr("deployments.protocol.raw.time.monotonic", lambda: next(moments))
    with pytest.raises(DeadlineError):
        ENCODERS["text"].encode(["a"] * 600, 600)


@pytest.mark.parametrize(
    ("name", "body", "kind", "values"),
    [
        ("text", TEXTS[0].encode(), "text/plain; charset=utf-8", TEXTS[:1]),
        ("text", TEXTS[0].encode() + b"\n", "text/plain", TEXTS[:1]),
        ("text", b'["a", "b"]', "text/plain", ['["a", "b"]']),
        ("text", b"", "text/plain", [""]),
        ("text", TEXTS[0].encode(), "application/x-www-form-urlencoded", TEXTS[:1]),
        ("text", b"[not json", "", ["[not json"]),
        ("text", json.dumps(TEXTS).encode(), "", TEXTS),
        ("text", json.dumps({"rows": TEXTS}).encode(), "application/json", TEXTS),
        ("text", json.dumps(TEXTS[0]).encode(), "application/json", TEXTS[:1]),
        ("text", stream(pa.array([*TEXTS, None])), ARROW, [*TEXTS, ""]),
        ("text", stream(pa.array(UTF8, pa.large_binary())), "", TEXTS),
        ("audio", SOUNDS[2], "audio/wav", SOUNDS[2:]),
        ("audio", SOUNDS[0], "", SOUNDS[:1]),
        ("audio", SOUNDS[0], "application/octet-stream", SOUNDS[:1]),
        ("audio", json.dumps(TONE.tolist()).encode(), "application/json", [TONE]),
        ("audio", json.dumps([[0.5, -0.5, 0], [0.25]]).encode(), "", [[0.5, -0.5, 0.0], [0.25]]),
        ("audio", stream(pa.array(SOUNDS)), ARROW, SOUNDS),
        ("audio", stream(pa.array([TONE, TONE[:3]])), ARROW, [TONE, TONE[:3]]),
        ("audio", stream(lists(TONE[None])), ARROW, [TONE]),
        ("table", json.dumps(ROWS).encode(), "application/json", COLUMNS),
        ("table", json.dumps({"rows": ROWS}).encode(), "", COLUMNS),
        ("table", json.dumps(ROWS[0]).encode(), "", {name: column[:1] for name, column in COLUMNS.items()}),
    ],
)
def test_predict_formats(name: str, body: bytes, kind: str, values: Any) -> None:
    np.testing.assert_array_equal(raw_predict.read(body, kind, ENCODERS[name]), encoded(name, values))


@pytest.mark.parametrize("color", [pa.string(), pa.binary()])
def test_arrow_columns_by_name(color: pa.DataType) -> None:
    colors = [
        None if one is None else one.encode() if color == pa.binary() else one for one in COLUMNS["color"]
    ]
    body = stream(
        pa.array(colors, color),
        pa.array(COLUMNS["hours per week"], pa.float32()),
        pa.array([30, None, 61, 18], pa.int64()),
        names=["color", "hours per week", "age"],
    )
    wanted = encoded("table", {**COLUMNS, "age": [30, None, 61, 18]})
    np.testing.assert_array_equal(raw_predict.read(body, ARROW, ENCODERS["table"]), wanted)


ROW = ROWS[0]


def test_a_whole_float_is_the_category_of_its_integer() -> None:
    whole, plain = (json.dumps([{**ROW, "color": value}]).encode() for value in (2.0, 2))
    found = raw_predict.read(whole, "", ENCODERS["table"])
    np.testing.assert_array_equal(found, raw_predict.read(plain, "", ENCODERS["table"]))


def arrow_ages(ages: pa.Array) -> bytes:
    return stream(ages, pa.nulls(len(ages)), pa.nulls(len(ages)), names=["age", "color", "hours per week"])


def without_end(rows: int, length: int) -> list[pa.Array]:
    """Columns whose values have that length each, though the stream is short."""
    views = pa.py_buffer(struct.pack("<i4sii", length, b"xxxx", 0, 0) * rows)
    text = "x" * length
    return [
        pa.Array.from_buffers(pa.string_view(), rows, [None, views, pa.py_buffer(text.encode())]),
        pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([text])),
        pa.Array.from_buffers(pa.list_(pa.null(), length), rows, [None], children=[pa.nulls(rows * length)]),
    ]


@pytest.mark.parametrize("ages", without_end(50, 20_000), ids=lambda column: str(column.type)[:12])
def test_a_short_stream_with_values_without_end_is_refused_before_any_is_made(
    ages: pa.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_predict, "_arrow_values", None)
    with pytest.raises(ProtocolError, match="'age' must be of numbers, truth values or texts"):
        raw_predict.read(arrow_ages(ages), ARROW, ENCODERS["table"])


@pytest.mark.parametrize(
    ("name", "body", "kind", "status", "says"),
    [
        ("text", b"\xff", "text/plain", 400, "no Unicode text"),
        ("text", b"[1]", "application/json", 400, "rows must be texts: 1"),
        ("text", b"[]", "application/json", 400, "something in it"),
        ("text", b"{}", "application/json", 400, "the keys are"),
        ("text", b"x", "audio/wav", 415, "not supported for this model"),
        ("text", stream(pa.array([1])), ARROW, 400, "one column of texts"),
        ("text", stream(pa.array(["a"]).dictionary_encode()), ARROW, 400, "plain columns"),
        ("audio", b"RIFFxxxxWAVE", "", 400, "row 0 of the request"),
        ("audio", b"[true]", "application/json", 400, "must be numbers: True"),
        ("audio", b"[[]]", "application/json", 400, "list of samples"),
        ("audio", b"[[1], 2]", "application/json", 400, "list of samples: 2"),
        ("audio", b"[1e999]", "application/json", 400, "not finite"),
        ("audio", f"[{10**400}]".encode(), "application/json", 400, "beyond 16 bits"),
        ("audio", bytes(7), "", 400, "raw data must be rows of 160 bytes"),
        ("audio", b"hello", "text/plain", 415, "not supported for this model"),
        ("table", json.dumps([ROW, {"age": 1}]).encode(), "", 400, "row 1 has no column: 'color'"),
        ("table", json.dumps([{**ROW, "x": 1}]).encode(), "", 400, "unknown column: 'x'"),
        ("table", json.dumps([[1, 2, 3]]).encode(), "", 400, "objects by column name"),
        ("table", json.dumps([{**ROW, "age": "x"}]).encode(), "", 400, "row 0 has no number in column 'age'"),
        ("table", json.dumps([{**ROW, "age": 10**400}]).encode(), "", 400, "too large a number"),
        ("table", json.dumps([{**ROW, "color": [1]}]).encode(), "", 400, "no category in column 'color'"),
        ("table", json.dumps([{**ROW, "color": 1.5}]).encode(), "", 400, "no category in column 'color'"),
        ("table", b"[]", "", 400, "something in it"),
        ("table", b'{"rows": {}}', "", 400, "must be a list"),
        ("table", b"a,b", "text/csv", 415, "not supported for this model"),
        ("table", stream(pa.array([1]), names=["age"]), ARROW, 400, "no input: 'color'"),
        ("table", stream(pa.nulls(9), pa.nulls(9), names=["a", "a"]), ARROW, 400, "same name twice"),
        ("table", stream(*[pa.nulls(9)] * 4, names=[*COLUMNS, "age"]), ARROW, 400, "same name twice"),
        ("table", arrow_ages(pa.nulls(50_000)), ARROW, 400, "a bit at least for each row"),
        ("table", arrow_ages(pa.array([2**62], pa.timestamp("s"))), ARROW, 400, "must be of numbers"),
    ],
)
def test_bad_bodies_of_predict(name: str, body: bytes, kind: str, status: int, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        raw_predict.read(body, kind, ENCODERS[name])
    assert caught.value.status == status
