"""Text, sound and columns over real ports: the protocol's own clients, and ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from orchestrator.client import Client
from orchestrator.errors import InputError, ServingError
from orchestrator.load.request import target_of
from tests.deployments.listening import Ports, expected, listening
from tests.deployments.raws import COLUMNS, MODELS, ROWS, SOUNDS, TEXTS, TONE, encoded, raw_front

INPUTS: dict[str, dict[str, np.ndarray]] = {
    "text": {"input": np.array(TEXTS, np.object_)},
    "audio": {"input": np.array(SOUNDS, np.object_)[:, None]},
    "table": {
        "age": np.array(COLUMNS["age"], np.float32),
        "color": np.array([one or "" for one in COLUMNS["color"]], np.object_)[:, None],
        "hours per week": np.array(COLUMNS["hours per week"], np.float64),
    },
}
ROWS_OF = {
    "text": encoded("text", TEXTS),
    "audio": encoded("audio", SOUNDS),
    "table": encoded("table", COLUMNS),
}


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    with listening(raw_front()) as found:
        yield found


def asked(kind: Any, name: str, **options: Any) -> list[Any]:
    found = []
    for called, values in INPUTS[name].items():
        tensor = kind.InferInput(called, list(values.shape), triton_type(values))
        tensor.set_data_from_numpy(values, **options)
        found.append(tensor)
    return found


def triton_type(values: np.ndarray) -> str:
    return {"O": "BYTES", "f4": "FP32", "f8": "FP64"}[values.dtype.str.lstrip("<|")]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_triton_over_http(ports: Ports, name: str, compression: str | None) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
        assert client.get_model_metadata(name) == MODELS[name].metadata()
        found = client.infer(name, asked(triton, name), request_compression_algorithm=compression)
    wanted = expected(MODELS[name], ROWS_OF[name])
    np.testing.assert_array_equal(found.as_numpy("label"), wanted["label"])
    np.testing.assert_array_equal(found.as_numpy("probabilities"), wanted["probabilities"])


def test_strings_in_json(ports: Ports) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
        found = client.infer("text", asked(triton, "text", binary_data=False))
    wanted = expected(MODELS["text"], ROWS_OF["text"])["probabilities"]
    np.testing.assert_array_equal(found.as_numpy("probabilities"), wanted)


@pytest.mark.parametrize("name", INPUTS)
def test_triton_over_grpc(ports: Ports, name: str) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        found = client.infer(name, asked(triton_grpc, name))
        wanted = expected(MODELS[name], ROWS_OF[name])
        np.testing.assert_array_equal(found.as_numpy("probabilities"), wanted["probabilities"])
        with pytest.raises(InferenceServerException, match="no input"):
            client.infer(name, [triton_grpc.InferInput("other", [1], "BYTES")])


def test_our_client(ports: Ports, tmp_path: Path) -> None:
    def labels(name: str) -> list[int]:
        found: list[int] = expected(MODELS[name], ROWS_OF[name])["label"].tolist()
        return found

    with Client(f"http://127.0.0.1:{ports.http}") as client:
        for values in (TEXTS, np.array(TEXTS), iter(TEXTS)):
            assert [row["label"] for row in client.predict(values, "text").rows] == labels("text")
        assert [row["label"] for row in client.predict(TEXTS[0], "text").rows] == labels("text")[:1]
        assert [row["label"] for row in client.predict(SOUNDS, "audio").rows] == labels("audio")
        assert [row["label"] for row in client.predict([TONE], "audio").rows] == labels("audio")[:1]
        (tmp_path / "one.wav").write_bytes(SOUNDS[1])
        for sound in (tmp_path / "one.wav", SOUNDS[1]):
            assert client.predict_audio(sound, "audio").rows[0]["label"] == labels("audio")[1]
        missing = [{name: float("nan") if one is None else one for name, one in row.items()} for row in ROWS]
        for rows in (ROWS, missing):
            assert [row["label"] for row in client.predict(rows, "table").rows] == labels("table")
        with pytest.raises(InputError, match="row 0 has no column: 'color'"):
            client.predict([{"age": 1}], "table")
        with pytest.raises(InputError, match="all files, or none"):
            client.predict([SOUNDS[0], [1, 2]], "audio")


def test_plain_bodies(ports: Ports) -> None:
    url = f"http://127.0.0.1:{ports.http}/v2/models"
    wav = {"Content-Type": "audio/wav"}
    found = httpx.post(f"{url}/audio/predict", content=SOUNDS[2], headers=wav).json()
    assert found["predictions"][0]["label"] == expected(MODELS["audio"], ROWS_OF["audio"])["label"][2]
    found = httpx.post(
        f"{url}/text/predict", content="\ud55c".encode(), headers={"Content-Type": "text/plain"}
    )
    assert found.json()["predictions"][0]["class"].startswith("class ")
    assert (
        httpx.post(f"{url}/text/predict", content=b"\xff").json()["error"].startswith("row 0 of the request")
    )


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("binary", [True, False])
def test_made_up_requests_are_answered(ports: Ports, name: str, binary: bool) -> None:
    url = f"http://127.0.0.1:{ports.http}"
    if name == "audio" and not binary:
        with pytest.raises(ServingError, match="no form in JSON"):
            target_of(url, name, binary=False)
        return
    _name, target = target_of(url, name, rows=3, binary=binary)
    head, _, body = target.request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    found = httpx.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers)
    assert found.status_code == 200, found.text
