"""The gRPC server with the protocol's own client, over a real port."""

from __future__ import annotations

import asyncio
import queue
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deployments import grpc_server
from deployments.exchange import Answer, Question
from deployments.front import SERVER_NAME, Front
from deployments.grpc_server import GrpcServer, _Service
from deployments.http.access import Access
from deployments.http.app import HttpApp
from deployments.http.listener import Listener
from deployments.protocol import grpc_messages as messages
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.rest import MAX_JSON_BYTES
from orchestrator import keys
from orchestrator.config.access import AccessSettings, TlsSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ServingError
from tests.deployments.listening import (
    FEATURE_MODEL,
    IMAGE_MODEL,
    expected,
    free_port,
    front,
    listening,
    served,
)

PIXELS = np.random.default_rng(5).integers(0, 256, (3, 1, 2, 3), dtype=np.uint8)
NUMBERS = np.random.default_rng(6).normal(size=(3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(front()) as ports:
        yield ports.grpc


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as found:
        yield found


def tensor(rows: np.ndarray) -> Any:
    found = triton.InferInput("input", list(rows.shape), np_to_triton_dtype(rows.dtype))
    found.set_data_from_numpy(rows)
    return found


@pytest.mark.parametrize(
    "name",
    sorted(
        message.name
        for message in messages._POOL.FindFileByName("open_inference.proto").message_types_by_name.values()
    ),
)
def test_messages_are_those_of_the_protocols_own_client(name: str) -> None:
    ours = messages.message(name).DESCRIPTOR
    theirs = getattr(service_pb2, name).DESCRIPTOR
    assert fields(ours) == fields(theirs)


def fields(descriptor: Any) -> dict[str, Any]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            None
            if field.message_type is None or field.message_type.full_name == descriptor.full_name
            else fields(field.message_type),
        )
        for field in descriptor.fields
    }


def test_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("images")
    assert client.is_model_ready("images", IMAGE_MODEL.version)
    assert client.get_server_metadata().name == SERVER_NAME
    found = client.get_model_metadata("images", as_json=True)
    assert found["inputs"][0]["shape"] == ["-1", "1", "2", "3"]
    assert [output["name"] for output in found["outputs"]] == list(IMAGE_MODEL.tensors)
    index = client.get_model_repository_index()
    assert {(model.name, model.state) for model in index.models} == {
        ("images", "READY"),
        ("features", "READY"),
    }


def test_answers(client: Any) -> None:
    result = client.infer("images", [tensor(PIXELS)], request_id="r1")
    wanted = expected(IMAGE_MODEL, PIXELS)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), wanted["probabilities"])
    np.testing.assert_array_equal(result.as_numpy("label"), wanted["label"])
    answer = result.get_response()
    assert (answer.id, answer.model_version) == ("r1", IMAGE_MODEL.version)
    assert answer.parameters["weight_epoch"].int64_param == 3
    assert answer.parameters["degraded"].bool_param is False
    result = client.infer("features", [tensor(NUMBERS)])
    np.testing.assert_array_equal(result.as_numpy("values"), expected(FEATURE_MODEL, NUMBERS)["values"])


def test_outputs_on_request(client: Any) -> None:
    names = ["exit_stage", "member_probs", "member_weights", "disagreement"]
    outputs = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer("images", [tensor(PIXELS)], outputs=outputs)
    wanted = expected(IMAGE_MODEL, PIXELS)
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), wanted[name])
    assert result.as_numpy("probabilities") is None


@pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_every_datatype_of_numpy(client: Any, dtype: str) -> None:
    rows = (PIXELS % 2).astype(dtype)
    result = client.infer("images", [tensor(rows)])
    wanted = expected(IMAGE_MODEL, PIXELS % 2)["probabilities"]
    np.testing.assert_array_equal(result.as_numpy("probabilities"), wanted)


def test_bf16(client: Any) -> None:
    found = triton.InferInput("input", [3, 3], "BF16")
    rounded = NUMBERS.astype(ml_dtypes.bfloat16)
    found.set_data_from_numpy(rounded)
    result = client.infer("features", [found])
    wanted = expected(FEATURE_MODEL, rounded.astype(np.float32))["values"]
    np.testing.assert_array_equal(result.as_numpy("values"), wanted)


@pytest.mark.parametrize(
    ("datatype", "field"), [(name, field) for name, field in messages.CONTENTS.items() if name != "BYTES"]
)
def test_contents_instead_of_raw_bytes(datatype: str, field: str) -> None:
    asked = messages.message("ModelInferRequest")(model_name="images", id="7")
    one = asked.inputs.add(name="input", datatype=datatype, shape=[1, 1, 2, 3])
    getattr(one.contents, field).extend([0, 1, 1, 0, 1, 0])
    request = messages.decode(asked, IMAGE_MODEL)
    assert request.rows.dtype == np.uint8
    assert request.rows.ravel().tolist() == [0, 1, 1, 0, 1, 0]


def asked(**changes: Any) -> Any:
    """A good request, with some of it changed."""
    values = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 3], "raw": [bytes(6)]} | changes
    found = messages.message("ModelInferRequest")(raw_input_contents=values.pop("raw"))
    for output in values.pop("outputs", ()):
        found.outputs.add(name=output)
    if "timeout" in values:
        found.parameters["timeout"].string_param = values.pop("timeout")
    contents = values.pop("contents", {})
    one = found.inputs.add(**values)
    for field, content in contents.items():
        getattr(one.contents, field).extend(content)
    return found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "x"}, "takes one input"),
        ({"datatype": "FLOAT"}, "datatype must be one of"),
        ({"shape": [2, 1, 2, 3]}, "needs 12 bytes, got: 6"),
        ({"shape": [-1, 1, 2, 3]}, "shape must be"),
        ({"shape": []}, "shape must be"),
        ({"raw": []}, "no data that can be read"),
        ({"raw": [bytes(6), bytes(6)]}, "one entry"),
        ({"contents": {"uint_contents": [1]}}, "one entry"),
        (
            {"raw": [], "contents": {"fp32_contents": [1.0] * 6}},
            "must be in uint_contents: ['fp32",
        ),
        ({"raw": [], "contents": {"uint_contents": [1] * 5}}, "needs 6 numbers, the data has: 5"),
        ({"raw": [], "contents": {"uint_contents": [256] * 6}}, "0..255: 256"),
        ({"raw": [bytes(12)], "datatype": "FP16", "contents": {"fp32_contents": [1.0]}}, "one entry"),
        ({"raw": [], "datatype": "FP16", "contents": {"fp32_contents": [1.0]}}, "no data that can be read"),
        ({"outputs": ["logits"]}, "no such output: 'logits'"),
        ({"outputs": ["label", "label"]}, "same name twice"),
        ({"timeout": "soon"}, "timeout must be a whole number"),
        ({"datatype": "BYTES", "shape": [1], "raw": [b"\4\0\0\0\0abc"]}, "are no image"),
        ({"datatype": "BYTES", "shape": [1], "raw": [b"\xff\xff\xff\xff"]}, "longer than its tensor"),
    ],
)
def test_bad_requests(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        messages.decode(asked(**changes), IMAGE_MODEL)
    assert says in str(caught.value)


def test_errors_are_status_codes(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="no such model: other") as caught:
        client.get_model_metadata("other")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="shape must be") as caught:
        client.infer("images", [tensor(PIXELS[:, :, :1])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("images", [tensor(np.zeros((400_000, 1, 2, 3), np.uint8))])
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.is_server_live()


def test_the_clients_deadline_is_that_of_the_question() -> None:
    asked: list[float] = []
    sound = served(IMAGE_MODEL)

    async def predict(question: Question) -> Answer:
        asked.append(question.timeout_s)
        return await sound.predict(question)

    over = Front([replace(sound, predict=predict)], ServingSettings(deadline_s=10))
    with listening(over) as ports, triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as found:
        found.infer("images", [tensor(PIXELS)])
        found.infer("images", [tensor(PIXELS)], client_timeout=6.0)
    assert 7 < asked[0] <= 10
    assert 0 < asked[1] < 7  # two clocks


def test_a_stream_holds_a_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = list[int]()

    class Body(bytes):
        def __del__(self) -> None:
            gone.append(len(self))

    wire = messages.message("ModelInferRequest")(model_name="images").SerializeToString()
    service = _Service(Front([], ServingSettings()), None)

    async def arrives() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield Body(wire)

    async def infer(_asked: Any, _context: Any) -> Any:
        return messages.message("ModelInferResponse")(id=f"{len(gone)} gone")

    async def test() -> list[Any]:
        return [found async for found in service.ModelStreamInfer(arrives(), None)]

    monkeypatch.setattr(service, "ModelInfer", infer)
    assert [one.infer_response.id for one in asyncio.run(test())] == ["1 gone", "2 gone"]


def test_a_stream_goes_on_after_an_error(client: Any) -> None:
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    client.async_stream_infer("images", [tensor(PIXELS)])
    client.async_stream_infer("other", [tensor(PIXELS)])
    client.async_stream_infer("images", [tensor(PIXELS[:1])])
    (first, _), (_, error), (last, _) = (found.get(timeout=20) for _ in range(3))
    client.stop_stream()
    assert len(first.as_numpy("label")) == 3
    assert "no such model" in str(error)
    assert len(last.as_numpy("label")) == 1


def test_the_asynchronous_client(port: int) -> None:
    async def test() -> list[int]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as found:
            asks = [found.infer("images", [tensor(PIXELS[:count])]) for count in (1, 2, 3)]
            return [len(result.as_numpy("label")) for result in await asyncio.gather(*asks)]

    assert asyncio.run(test()) == [1, 2, 3]


def test_it_listens_on_loopback_only(port: int) -> None:
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_a_port_that_is_taken_says_so() -> None:
    async def test(port: int) -> None:
        await GrpcServer(front(), "127.0.0.1", port).start()

    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(ServingError, match="cannot listen"):
        asyncio.run(test(holder.getsockname()[1]))


def test_a_port_is_shared_with_servers_of_the_same_application_alone() -> None:
    async def test(port: int) -> None:
        one, two, other = (
            GrpcServer(front(), "127.0.0.1", port, owner=name) for name in ("app a", "app a", "app b")
        )
        http = Listener(HttpApp(front()), ServingSettings(port=port), "app a")
        await one.start()
        await two.start()
        for refused in (other, http):
            with pytest.raises(ServingError, match="another server listens on the port"):
                await refused.start()
        await one.stop()
        await two.stop()
        await other.start()
        await other.stop()

    asyncio.run(test(free_port()))


def test_a_server_that_cannot_start_leaves_the_port_to_others(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    over = Front([], ServingSettings(tls=TlsSettings(certificate=missing, key=missing)))

    async def test(port: int) -> None:
        with pytest.raises(ServingError, match="TLS files cannot be used: No such file"):
            await GrpcServer(over, "127.0.0.1", port, owner="app a").start()
        other = GrpcServer(front(), "127.0.0.1", port, owner="app b")
        await other.start()
        await other.stop()

    asyncio.run(test(free_port()))


def test_a_plain_client_of_ours(port: int) -> None:
    """Without generated code."""
    live = messages.message("ServerLiveResponse")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{messages.SERVICE}/ServerLive", lambda _: b"", live.FromString)
        assert call(None, timeout=10).live


def test_calls_need_a_key_where_there_are_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    token = keys.add(file, "ann", "data")
    access = Access(AccessSettings(keys=str(file), rate_per_s=0.01, burst=2))
    with (
        listening(front(), access) as ports,
        triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
    ):
        assert client.is_server_live()
        asks: list[Callable[[dict[str, str]], Any]] = [
            lambda headers: client.get_server_metadata(headers=headers),
            lambda headers: client.infer("images", [tensor(PIXELS)], headers=headers),
        ]
        for ask in asks:
            for headers in ({}, {"authorization": "Bearer wrong"}):
                with pytest.raises(InferenceServerException, match=r"UNAUTHENTICATED.*valid API key"):
                    ask(headers)
        for ask in asks:
            ask({"authorization": f"Bearer {token}"})
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*too many requests"):
            asks[0]({"x-api-key": token})


def test_what_becomes_large_is_refused_before_it_is_made() -> None:
    kind = messages.message("ModelInferRequest")
    numbers = kind(model_name="images", inputs=[{"contents": {"uint_contents": b"1" * (MAX_JSON_BYTES + 1)}}])
    for data, says in (
        (numbers.SerializeToString(), "at most 8388608 bytes beside raw_input_contents"),
        (b"\x2a\x00" * (messages.MAX_PARTS + 1), "at most 65536 parts"),  # empty inputs
    ):
        with pytest.raises(TooLargeError, match=says):
            messages.parse(data, kind)
    raw = kind(model_name="images", raw_input_contents=[bytes(MAX_JSON_BYTES + 1)])
    assert messages.parse(raw.SerializeToString(), kind) == raw
    for damaged in (b"\xff" * 9, b"\xff" * 2**17, b"\x2a\xff" * 2**16):
        with pytest.raises(ProtocolError, match="cannot be read"):
            messages.parse(damaged, kind)


async def silent(port: int, method: str) -> grpc.StatusCode:
    """The status of a call that is opened, and sends nothing."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary(f"/{messages.SERVICE}/{method}")()
        return await asyncio.wait_for(call.code(), 10)


def test_a_call_without_a_message_is_refused_for_its_key_at_once_and_ends_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys.add(file, "ann", "data")
    access = Access(AccessSettings(keys=str(file)))
    with listening(front(deadline_s=60), access) as ports:
        assert asyncio.run(silent(ports.grpc, "ModelInfer")) is grpc.StatusCode.UNAUTHENTICATED
    with listening(front(deadline_s=0.2)) as ports:
        for method in ("ModelInfer", "ServerMetadata"):
            assert asyncio.run(silent(ports.grpc, method)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert asyncio.run(silent(ports.grpc, "ServerLive")) is grpc.StatusCode.OK, "no message is read"


def test_an_idle_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "IDLE_S", 0.2)

    async def idle(port: int) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(f"/{messages.SERVICE}/ModelStreamInfer")()
            return await asyncio.wait_for(call.code(), 10)

    with listening(front()) as ports:
        assert asyncio.run(idle(ports.grpc)) is grpc.StatusCode.OK


def streamed(port: int, count: int, headers: dict[str, str]) -> list[tuple[Any, Any]]:
    """Results and errors of so many requests of one stream."""
    found: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: found.put((result, error)), headers=headers)
        for _ in range(count):
            client.async_stream_infer("images", [tensor(PIXELS)])
        return [found.get(timeout=20) for _ in range(count)]


def test_each_request_of_a_stream_counts_for_the_keys_rate(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    token = keys.add(file, "ann", "data")
    access = Access(AccessSettings(keys=str(file), rate_per_s=0.01, burst=2))
    with listening(front(), access) as ports:
        errors = [error for _, error in streamed(ports.grpc, 4, {"authorization": f"Bearer {token}"})]
    assert errors[:2] == [None, None]
    assert all("too many requests" in str(error) for error in errors[2:])


def test_a_defect_within_a_stream_tells_nothing_of_the_inside() -> None:
    async def predict(_question: Question) -> Answer:
        raise RuntimeError("secret of the inside")

    broken = Front([replace(served(IMAGE_MODEL), predict=predict)], ServingSettings())
    with listening(broken) as ports:
        errors = [str(error) for _, error in streamed(ports.grpc, 2, {})]
    assert ["internal error" in error for error in errors] == [True, True]
    assert "secret" not in "".join(errors)
