"""The HTTP server with the protocol's own clients, over a real port (reference: tritonclient's sources)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from deployments.protocol.datatypes import DATATYPES
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, expected, front, listening
from tests.deployments.pictures import png

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    **{
        f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}")
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "BYTES": np.object_,
}
ROWS = 150
"""So many that the answer is worth compressing."""
BITS = np.random.default_rng(3).integers(0, 2, (ROWS, 1, 2, 3)).astype(np.uint8)
NUMBERS = np.random.default_rng(4).integers(-1, 2, (ROWS, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(front()) as ports:
        yield ports.http


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as found:
        yield found


def image_tensor(datatype: str, *, binary: bool) -> Any:
    if datatype == "BYTES":
        files = np.array([png(row) for row in BITS], np.object_)
        found = triton.InferInput("input", [ROWS], datatype)
        found.set_data_from_numpy(files, binary_data=binary)
    else:
        found = triton.InferInput("input", list(BITS.shape), datatype)
        found.set_data_from_numpy(BITS.astype(NUMPY[datatype]), binary_data=binary)
    return found


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize(("in_binary", "out_binary"), [*itertools.product([True, False], repeat=2)])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_in_every_form(
    client: Any, datatype: str, in_binary: bool, out_binary: bool, compression: str | None
) -> None:
    if not in_binary and datatype in ("FP16", "BF16", "BYTES"):
        pytest.skip("has no form in JSON, or is no text")
    result = client.infer(
        "images",
        [image_tensor(datatype, binary=in_binary)],
        outputs=[
            triton.InferRequestedOutput("probabilities", binary_data=out_binary),
            triton.InferRequestedOutput("label", binary_data=not out_binary),
        ],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    wanted = expected(IMAGE_MODEL, BITS)
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted["probabilities"], rtol=1e-7)
    np.testing.assert_array_equal(result.as_numpy("label"), wanted["label"])


@pytest.mark.parametrize(
    "datatype", [name for name in DATATYPES if name != "BYTES" and not name.startswith(("U", "BO"))]
)
def test_signed_datatypes_for_features(client: Any, datatype: str) -> None:
    tensor = triton.InferInput("input", list(NUMBERS.shape), datatype)
    tensor.set_data_from_numpy(NUMBERS.astype(NUMPY[datatype]))
    result = client.infer("features", [tensor])
    np.testing.assert_array_equal(result.as_numpy("values"), expected(FEATURE_MODEL, NUMBERS)["values"])


def test_output_selection_order_and_id(client: Any) -> None:
    names = ["label", "exit_stage", "member_probs", "member_weights", "disagreement", "probabilities"]
    outputs = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer("images", [image_tensor("UINT8", binary=True)], outputs=outputs, request_id="é7")
    wanted = expected(IMAGE_MODEL, BITS)
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), wanted[name])
    answer = result.get_response()
    assert [output["name"] for output in answer["outputs"]] == names
    assert (answer["id"], answer["model_version"]) == ("é7", IMAGE_MODEL.version)


def test_everything_else_that_the_client_asks_for(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("images", IMAGE_MODEL.version)
    assert not client.is_model_ready("images", "other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("images") == IMAGE_MODEL.metadata()
    config = client.get_model_config("images")
    assert config["input"] == [{"name": "input", "data_type": "TYPE_UINT8", "dims": [1, 2, 3]}]
    assert config["max_batch_size"] == 2**20 // 6
    assert [model["name"] for model in client.get_model_repository_index()] == ["images", "features"]


def test_statistics_count_answers_rows_and_failures(client: Any) -> None:
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics("features")["model_stats"]
        assert found["version"] == FEATURE_MODEL.version
        phases = found["inference_stats"]
        return phases["success"]["count"], phases["fail"]["count"], found["inference_count"]

    answers, failures, rows = counts()
    tensor = triton.InferInput("input", list(NUMBERS.shape), "FP32")
    tensor.set_data_from_numpy(NUMBERS)
    client.infer("features", [tensor])
    bad = triton.InferInput("input", [1, 2], "FP32")
    bad.set_data_from_numpy(NUMBERS[:1, :2])
    with pytest.raises(InferenceServerException, match=r"\[400\] shape must be \[rows >= 1, 3\]"):
        client.infer("features", [bad])
    assert counts() == (answers + 1, failures + 1, rows + ROWS)
    assert len(client.get_inference_statistics()["model_stats"]) == 2


@pytest.mark.parametrize("change", ["load_model", "unload_model"])
def test_clients_do_not_load_or_unload(client: Any, change: str) -> None:
    with pytest.raises(InferenceServerException, match=r"\[400\] models are not loaded"):
        getattr(client, change)("images")
    assert client.is_model_ready("images")


def test_the_asynchronous_client(port: int) -> None:
    async def test() -> list[np.ndarray]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as found:
            tensor = image_tensor("UINT8", binary=True)
            asks = [
                found.infer("images", [tensor], response_compression_algorithm=name)
                for name in (None, "gzip", "deflate")
            ]
            return [result.as_numpy("label") for result in await asyncio.gather(*asks)]

    for labels in asyncio.run(test()):
        np.testing.assert_array_equal(labels, expected(IMAGE_MODEL, BITS)["label"])
