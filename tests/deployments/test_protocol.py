from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from deployments.protocol import rest
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Model, describe
from deployments.protocol.request import check_names
from tests.deployments.models import CASCADE, FEATURES, IMAGES, A, spec

IMAGE_MODEL = describe(spec(signature=IMAGES))
FEATURE_MODEL = describe(spec(signature=FEATURES))
PIXELS = list(range(12))
ROWS = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)


def image(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "shape": [2, 1, 2, 3], "datatype": "UINT8", "data": PIXELS}
    return {key: value for key, value in (tensor | changes).items() if value is not None}


def features(data: Any, shape: Any = (2, 3)) -> dict[str, Any]:
    return {"name": "input", "shape": list(shape), "datatype": "FP32", "data": data}


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)} | more).encode()


def refusal(text: bytes, model: Model = IMAGE_MODEL, header: str | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        rest.Codec(model).decode(text, header)
    return caught.value


def extra(name: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": shape, "parameters": {"on_request": True}}


def test_metadata_of_a_classification_and_a_regression() -> None:
    assert IMAGE_MODEL.metadata() == {
        "name": "small",
        "versions": [IMAGE_MODEL.version],
        "platform": "orchestrator_ensemble",
        "inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 1, 2, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            extra("member_probs", [-1, 2, 2]),
            extra("member_weights", [-1, 2]),
            extra("disagreement", [-1]),
        ],
    }
    metadata = FEATURE_MODEL.metadata()
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]
    assert metadata["outputs"][0] == {"name": "values", "datatype": "FP32", "shape": [-1, 2]}
    cascade = describe(spec(tree=CASCADE)).metadata()["outputs"][-1]
    assert cascade == extra("exit_stage", [-1]) | {"datatype": "INT64"}
    assert len(describe(spec(tree=A)).metadata()["outputs"]) == 2


def test_the_version_names_the_spec() -> None:
    changed = spec().model_copy(update={"weight_epoch": 4})
    assert len(IMAGE_MODEL.version) == 12
    assert describe(spec()).version == IMAGE_MODEL.version
    assert describe(changed).version != IMAGE_MODEL.version


@pytest.mark.parametrize("data", [PIXELS, ROWS.tolist()], ids=["flat", "nested"])
def test_json_images(data: Any) -> None:
    request = rest.Codec(IMAGE_MODEL).decode(body(image(data=data)), None)
    assert request.rows.dtype == np.uint8
    np.testing.assert_array_equal(request.rows, ROWS)
    assert request.id is None
    assert request.timeout_s is None


def test_json_features_may_mix_whole_and_broken_numbers() -> None:
    request = rest.Codec(FEATURE_MODEL).decode(body(features([[1, 2.5, -3], [0, 1e-3, 4]])), None)
    assert request.rows.dtype == np.float32
    np.testing.assert_array_equal(request.rows, np.array([[1, 2.5, -3], [0, 1e-3, 4]], np.float32))


def binary(raw: bytes, size: Any, **changes: Any) -> tuple[bytes, str]:
    header = body(image(data=None, parameters={"binary_data_size": size}, **changes))
    return header + raw, str(len(header))


def test_binary_images() -> None:
    text, header = binary(ROWS.tobytes(), 12)
    request = rest.Codec(IMAGE_MODEL).decode(text, header)
    np.testing.assert_array_equal(request.rows, ROWS)


def test_a_header_length_without_binary_tensors_is_legal() -> None:
    text = body(image())
    assert len(rest.Codec(IMAGE_MODEL).decode(text, str(len(text))).rows) == 2


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (image(name="x"), "takes one input, 'input'"),
        (image(name=None), "needs a name"),
        (image(name=7), "needs a name: 7"),
        ("input", "must be a JSON object"),
        (image(datatype="FLOAT"), "datatype must be one of BOOL, UINT8"),
        (image(datatype=None), "datatype must be one of"),
        (image(datatype=["UINT8"]), "datatype must be one of"),
        (image(shape=None), "shape must be a list"),
        (image(shape=12), "shape must be a list"),
        (image(shape=[12]), "shape must be [rows >= 1, 1, 2, 3]: [12]"),
        (image(shape=[2, 3, 2, 1]), "shape must be"),
        (image(shape=[-2, 1, 2, 3]), "shape must be"),
        (image(shape=[0, 1, 2, 3], data=[]), "shape must be"),
        (image(shape=[2.0, 1, 2, 3]), "whole numbers"),
        (image(shape=[True, 1, 2, 3]), "whole numbers"),
        (image(shape=[10**4000, 1, 2, 3]), "shape must be"),
        (image(shape=[2**31 - 1, 1, 2, 3]), "the data has: 12"),
        (image(shape=[3, 1, 2, 3]), "the shape needs 18 numbers, the data has: 12"),
        (image(data=None), "has no data: input"),
        (image(data="AAAA"), "data must be a list"),
        (image(data=[]), "the data has: 0"),
        (image(data=PIXELS[:-1]), "the data has: 11"),
        (image(data=[*PIXELS[:-1], True]), "whole numbers: True"),
        (image(data=[*PIXELS[:-1], "7"]), "whole numbers: '7'"),
        (image(data=[*PIXELS[:-1], None]), "whole numbers: None"),
        (image(data=[*PIXELS[:-1], 1.5]), "whole numbers: 1.5"),
        (image(data=[*PIXELS[:-1], 256]), "UINT8 data must be 0..255: 256"),
        (image(data=[*PIXELS[:-1], -1]), "0..255: -1"),
        (image(data=[*PIXELS[:-1], 10**30]), "0..255"),
        (image(data=[*PIXELS[:-1], {}]), "whole numbers: {}"),
        (image(data=ROWS.reshape(2, 1, 3, 2).tolist()), "shape [2, 1, 2, 3] at axis: 2"),
        (image(data=ROWS.reshape(2, 6).tolist()), "at axis: 1"),
        (image(data=[ROWS[0].tolist(), 3]), "at axis: 1"),
        (image(data=[[[[0, 1, 2], [3, 4]]], [[[6, 7, 8], [9, 10, 11]]]]), "at axis: 3"),
        (image(data=[[ROWS.tolist()]]), "at axis: 0"),
        (image(parameters=3), "parameters of an input must be a JSON object"),
        (image(parameters={"binary_data_size": 12}), "both data and binary_data_size"),
        (image(data=None, parameters={"shared_memory_region": "r"}), "has no data"),
    ],
)
def test_bad_tensors(tensor: Any, says: str) -> None:
    error = refusal(body(tensor))
    assert error.status == 400
    assert says in str(error)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([1, 2, 3, 4, 5, True], "must be numbers: True"),
        ([1, 2, 3, 4, 5, "6"], "must be numbers: '6'"),
        ([1, 2, 3, 4, 5, 1e39], "finite"),
        ([1, 2, 3, 4, 5, 10**400], "64-bit float"),
        ([[1, 2, 3], [4, 5]], "at axis: 1"),
    ],
)
def test_bad_features(data: Any, says: str) -> None:
    assert says in str(refusal(body(features(data)), FEATURE_MODEL))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_has_no_nan_and_no_infinity(number: str) -> None:
    text = body(features([1, 2, 3, 4, 5, 77])).replace(b"77", number.encode())
    assert refusal(text, FEATURE_MODEL).status == 400


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_binary_has_no_nan_and_no_infinity_either(value: float) -> None:
    rows = np.array([[0, value, 1]], np.float32)
    tensor = features(None, (1, 3)) | {"parameters": {"binary_data_size": 12}}
    del tensor["data"]
    header = body(tensor)
    assert "finite" in str(refusal(header + rows.tobytes(), FEATURE_MODEL, str(len(header))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "the request must be a JSON object"),
        (b"null", "the request must be a JSON object"),
        (b"{}", "inputs must be a list"),
        (b'{"inputs": {}}', "inputs must be a list"),
        (b'{"inputs": []}', "takes one input"),
        (body(image(), image()), "inputs has the same name twice"),
        (body(image(), image(name="more")), "takes one input, 'input'"),
        (body(image(), id=7), "id must be a string"),
        (body(image(), parameters=[]), "parameters must be a JSON object"),
        (body(image(), parameters={"binary_data_output": 1}), "binary_data_output must be true or false"),
        (body(image(), parameters={"timeout": -1}), "timeout"),
        (body(image(), parameters={"timeout": True}), "timeout"),
        (body(image(), outputs={}), "outputs must be a list"),
        (body(image(), outputs=["label"]), "must be a JSON object"),
        (body(image(), outputs=[{"name": "logits"}]), "known: probabilities, label"),
        (body(image(), outputs=[{"name": "label"}, {"name": "label"}]), "same name twice"),
        (body(image(), outputs=[{"name": "label", "parameters": {"binary_data": "yes"}}]), "true or false"),
        (
            body(image(), outputs=[{"name": "label", "parameters": {"classification": 3}}]),
            "not supported: 'classification'",
        ),
    ],
)
def test_bad_requests(text: bytes, says: str) -> None:
    error = refusal(text)
    assert error.status == 400
    assert says in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("header", ["-1", "x", "", "1.5", "²", "9" * 30, "1000"])
def test_bad_header_lengths(header: str) -> None:
    text, _ = binary(ROWS.tobytes(), 12)
    assert refusal(text, header=header).status == 400


@pytest.mark.parametrize(
    ("raw", "size", "says"),
    [
        (bytes(11), 11, "UINT8 of shape [2, 1, 2, 3] needs 12 bytes, got: 11"),
        (bytes(12), 11, "has 12 bytes behind its header, not binary_data_size: 11"),
        (bytes(12), True, "binary_data_size must be a whole number"),
        (bytes(12), "12", "binary_data_size must be a whole number"),
        (bytes(12), -12, "binary_data_size must be a whole number"),
        (bytes(11), 12, "has 11 bytes behind its header"),
        (bytes(13), 12, "has 13 bytes behind its header"),
    ],
)
def test_bad_binary_sizes(raw: bytes, size: Any, says: str) -> None:
    text, header = binary(raw, size)
    assert says in str(refusal(text, header=header))


def test_bytes_that_no_input_claims() -> None:
    header = body(image())
    assert "no input claims" in str(refusal(header + b"1234", header=str(len(header))))


VALUES = {
    "probabilities": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    "label": np.array([1, 0]),
}
FACTS: dict[str, str | int | float | bool] = {"weight_epoch": 3, "degraded": False, "members_used": "a,b"}


def answer(text: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer and the binary tensors behind it."""
    codec = rest.Codec(IMAGE_MODEL)
    encoded = codec.encode(codec.decode(text, None), VALUES, FACTS)
    if encoded.header_length is None:
        return json.loads(encoded.body), b""
    return json.loads(encoded.body[: encoded.header_length]), encoded.body[encoded.header_length :]


def test_a_json_answer() -> None:
    found, raw = answer(body(image()))
    assert raw == b""
    assert found == {
        "model_name": "small",
        "model_version": IMAGE_MODEL.version,
        "parameters": FACTS,
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }


def test_the_id_comes_back() -> None:
    assert answer(body(image(), id="é\ud800"))[0]["id"] == "é\ud800"


def test_output_selection_and_order() -> None:
    found, _ = answer(body(image(), outputs=[{"name": "label"}]))
    assert [output["name"] for output in found["outputs"]] == ["label"]
    found, _ = answer(body(image(), outputs=[{"name": "label"}, {"name": "probabilities"}]))
    assert [output["name"] for output in found["outputs"]] == ["label", "probabilities"]
    found, _ = answer(body(image(), outputs=[]))
    assert len(found["outputs"]) == 2


def test_binary_answers() -> None:
    found, raw = answer(body(image(), parameters={"binary_data_output": True}))
    sizes = [output["parameters"]["binary_data_size"] for output in found["outputs"]]
    assert sizes == [16, 16]
    assert raw == VALUES["probabilities"].tobytes() + VALUES["label"].astype("<i8").tobytes()
    assert all("data" not in output for output in found["outputs"])


def test_one_output_may_be_binary_and_the_other_json() -> None:
    wanted = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    found, raw = answer(body(image(), outputs=wanted))
    assert raw == VALUES["label"].astype("<i8").tobytes()
    assert found["outputs"][1]["data"] == [0.25, 0.75, 0.5, 0.5]


def test_the_clients_timeout_is_in_microseconds() -> None:
    request = rest.Codec(IMAGE_MODEL).decode(body(image(), parameters={"timeout": 1_500_000}), None)
    assert request.timeout_s == 1.5


def test_errors_keep_their_status_through_pickle() -> None:
    error = pickle.loads(pickle.dumps(TooLargeError("too long", 7)))
    assert error.status == 413
    assert str(error) == "too long: 7"


def test_long_json_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = body(image())
    monkeypatch.setattr(rest, "MAX_JSON_BYTES", len(text) - 1)
    assert refusal(text).status == 413
    header, length = binary(ROWS.tobytes(), 12)
    monkeypatch.setattr(rest, "MAX_JSON_BYTES", int(length or 0))
    rest.Codec(IMAGE_MODEL).decode(header, length)


def test_a_name_that_is_missing_is_found_in_one_pass() -> None:
    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

    with pytest.raises(ProtocolError, match="each of inputs needs a name: None"):
        check_names([*(Name(number) for number in range(1000)), None], "inputs")
    assert Name.compared == 0
