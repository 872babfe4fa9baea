from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from deployments.front import Front
from deployments.http.app import HttpApp
from deployments.protocol import images
from tests.deployments.calling import Got, send
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, expected, front, served
from tests.deployments.pictures import encoded, png

APP = HttpApp(front())
PIXELS = np.random.default_rng(8).integers(0, 256, (3, 1, 2, 3), dtype=np.uint8)
NUMBERS = np.random.default_rng(9).normal(size=(4, 3)).astype(np.float32)
ARROW = "application/vnd.apache.arrow.stream"


def post(body: bytes, kind: str | None = None, *, query: str = "model=images", path: str = "/predict") -> Got:
    headers = {} if kind is None else {"Content-Type": kind}
    return asyncio.run(send(APP, "POST", path, body, headers, query=query))


def labels(got: Got) -> list[int]:
    assert got.status == 200, got.body
    return [row["label"] for row in got.json()["predictions"]]


def stream(*columns: pa.Array, names: Sequence[str] = (), **options: Any) -> bytes:
    batch = pa.record_batch(list(columns), names=list(names) or [str(i) for i in range(len(columns))])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(0, 0))
    return sink.getvalue()


def one_after_another(*columns: pa.Array) -> bytes:
    """A stream with a batch for each."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema({"0": columns[0].type})) as writer:
        for column in columns:
            writer.write_batch(pa.record_batch([column], names=["0"]))
    return sink.getvalue()


def overlapping(rows: int) -> bytes:
    """A stream of three float columns that have the same bytes."""
    size = 4 * rows
    body = stream(*[pa.array(np.arange(rows), pa.float32())] * 3)
    for place in (1, 2):
        said = body.rindex(struct.pack("<qq", place * size, size))
        body = body[:said] + struct.pack("<q", 0) + body[said + 8 :]
    at = body.index(struct.pack("<q", 3 * size))  # length of the batch's data
    first = body.index(np.arange(rows, dtype=np.float32).tobytes())
    return body[:at] + struct.pack("<q", size) + body[at + 8 : first + size] + body[first + 3 * size :]


def lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows[0].size)


def tensors(rows: np.ndarray, **options: Any) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), rows.shape[1:], **options), lists(rows)
    )


def test_the_whole_answer_for_an_image() -> None:
    got = post(png(PIXELS[0]), "image/png")
    probs = expected(IMAGE_MODEL, PIXELS[:1])["probabilities"][0].tolist()
    label = int(np.argmax(probs))
    assert got.json() == {
        "model": "images",
        "version": IMAGE_MODEL.version,
        "weight_epoch": 3,
        "degraded": False,
        "members_used": "a,b",
        "classes": ["no", "yes"],
        "predictions": [{"probabilities": probs, "label": label, "class": ["no", "yes"][label]}],
    }


WANTED = expected(IMAGE_MODEL, PIXELS)["label"].tolist()
FLAT = PIXELS.reshape(3, -1).tolist()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PIXELS.tobytes(), "application/octet-stream"),
        (PIXELS.tobytes(), None),
        (json.dumps(PIXELS.tolist()).encode(), "application/json; charset=utf-8"),
        (json.dumps(FLAT).encode(), "application/json"),
        (json.dumps({"rows": FLAT}).encode(), "application/x-www-form-urlencoded"),
        (stream(lists(PIXELS)), ARROW),
        (stream(lists(PIXELS.astype(np.int64))), None),
        (stream(pa.array([png(row) for row in PIXELS])), ARROW),
        (stream(pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)), ARROW),
        (stream(tensors(PIXELS, permutation=[0, 1, 2])), ARROW),
    ],
)
def test_rows_in_every_format(body: bytes, kind: str | None) -> None:
    assert labels(post(body, kind)) == WANTED


@pytest.mark.parametrize("kind", ["image/png", "image/*", None, "text/plain"])
def test_one_image_file(kind: str | None) -> None:
    assert labels(post(png(PIXELS[1]), kind)) == WANTED[1:2]


def test_one_flat_row() -> None:
    assert labels(post(json.dumps(FLAT[2]).encode())) == WANTED[2:]


def test_an_image_of_another_size_and_mode_is_fitted() -> None:
    bright = np.full((3, 64, 48), 250, np.uint8)
    assert labels(post(encoded(bright, "JPEG"), "image/jpeg")) == [1]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(NUMBERS.tolist()).encode(),
        NUMBERS.tobytes(),
        stream(lists(NUMBERS)),
        stream(*(pa.array(column) for column in NUMBERS.T)),
        stream(*(pa.array(column.astype(np.float64)) for column in NUMBERS.T), names=["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize(
    "path", ["/v2/models/features/predict", f"/v2/models/features/versions/{FEATURE_MODEL.version}/predict"]
)
def test_features(body: bytes, path: str) -> None:
    got = post(body, query="", path=path)
    found = [row["values"] for row in got.json()["predictions"]]
    np.testing.assert_array_equal(np.array(found, np.float32), expected(FEATURE_MODEL, NUMBERS)["values"])
    assert "classes" not in got.json()


def test_more_outputs_on_request() -> None:
    got = post(PIXELS.tobytes(), query="model=images&outputs=exit_stage,member_probs,label")
    wanted = expected(IMAGE_MODEL, PIXELS)
    rows = got.json()["predictions"]
    assert [row["exit_stage"] for row in rows] == wanted["exit_stage"].tolist()
    assert [row["member_probs"] for row in rows] == wanted["member_probs"].tolist()
    assert sorted(rows[0]) == ["class", "exit_stage", "label", "member_probs", "probabilities"]


def test_the_only_model_needs_no_name() -> None:
    app = HttpApp(Front([served(FEATURE_MODEL)], front().serving))
    got = asyncio.run(send(app, "POST", "/predict", NUMBERS.tobytes()))
    assert len(got.json()["predictions"]) == 4


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("", 400, "several models are served. name one with ?model=, of images, features"),
        ("model=other", 404, "no such model: other"),
        ("model=images&model=images", 400, "comes twice"),
        ("model=images&x=1", 400, "unknown query parameter: x"),
        ("model=images&outputs=logits", 400, "no such output"),
        ("model=images&outputs=label,label", 400, "same name twice"),
        ("model=images&timeout_ms=0", 400, "timeout_ms"),
        ("model=images&timeout_ms=-1", 400, "timeout_ms"),
        ("model=images&timeout_ms=1e3", 400, "timeout_ms"),
    ],
)
def test_bad_queries(query: str, status: int, says: str) -> None:
    got = post(PIXELS.tobytes(), query=query)
    assert got.status == status
    assert says in got.json()["error"]


def nulls(kind: pa.DataType) -> pa.Array:
    return pa.array([[0] * 6, None], pa.list_(kind, 6))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", None, 400),
        (b"", "image/png", 400),
        (b"", "application/json", 400),
        (b"", ARROW, 400),
        (bytes(7), "application/octet-stream", 400),
        (png(PIXELS[0])[:45], "image/png", 400),
        (b"GIF89a", "image/gif", 400),
        (PIXELS.tobytes(), "multipart/form-data; boundary=x", 415),
        (PIXELS.tobytes(), "video/mp4", 415),
        (b"[]", "application/json", 400),
        (b"[[]]", "application/json", 400),
        (b"7", "application/json", 400),
        (b'{"rows": []}', "application/json", 400),
        (b'{"instances": [[1,2,3,4,5,6]]}', "application/json", 400),
        (b"[[1,2,3,4,5,6],[1,2,3,4,5]]", "application/json", 400),
        (b"[[1,2,3,4,5,6,7],[1,2,3,4,5]]", "application/json", 400),
        (b"[[1,2,3,4,5,6],7]", "application/json", 400),
        (b"[[1,2,3,4,5,256]]", "application/json", 400),
        (b"[" * 5000, None, 400),
        (b"\xff\xff\xff\xff" * 20, None, 400),
        (stream(lists(PIXELS))[:-40], ARROW, 400),
        (stream(lists(PIXELS.reshape(9, 2))), ARROW, 400),
        (stream(lists(PIXELS)[:0]), ARROW, 400),
        (stream(lists(PIXELS), lists(PIXELS)), ARROW, 400),
        (stream(nulls(pa.uint8())), ARROW, 400),
        (stream(pa.array(["a"]).dictionary_encode()), ARROW, 400),
        (stream(pa.nulls(2)), ARROW, 400),
        (stream(pa.array([b"x"])), ARROW, 400),
        (stream(tensors(PIXELS.transpose(0, 2, 3, 1))), ARROW, 400),
        (stream(tensors(PIXELS, permutation=[0, 2, 1])), ARROW, 400),
        (stream(tensors(PIXELS.transpose(0, 2, 3, 1), permutation=[2, 0, 1])), ARROW, 400),
        (stream(pa.array([[0] * 6], pa.opaque(pa.list_(pa.uint8(), 6), "odd", "us"))), ARROW, 400),
        (stream(lists(np.zeros((90, 1, 2, 3), np.uint8)), compression="zstd"), ARROW, 415),
        (stream(lists(np.zeros((90, 1, 2, 3), np.uint8)), compression="lz4"), ARROW, 415),
    ],
)
def test_bad_bodies(body: bytes, kind: str | None, status: int) -> None:
    got = post(body, kind)
    assert got.status == status, got.body
    assert list(got.json()) == ["error"]


def test_a_small_file_with_a_huge_image_is_refused_by_its_head() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 2_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 20_000
    assert images.MAX_PIXELS < 20_000 * 2_000
    assert post(buffer.getvalue(), "image/png").status == 413


def test_images_are_bounded_by_what_they_become(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 12)
    assert post(stream(pa.array([png(row) for row in PIXELS[:2]])), ARROW).status == 200
    got = post(stream(pa.array([png(row) for row in PIXELS])), ARROW)
    assert (got.status, "at most 2 images: 3" in got.json()["error"]) == (413, True)


def test_all_images_of_a_request_are_counted_before_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_REQUEST_PIXELS", 2 * PIXELS[0].size)
    assert post(stream(pa.array([png(row) for row in PIXELS[:2]])), ARROW).status == 200
    monkeypatch.setattr("orchestrator.data.images.Decoder.image", None)
    got = post(stream(pa.array([png(row) for row in PIXELS])), ARROW)
    assert (got.status, "at most 12 pixels" in got.json()["error"]) == (413, True)


@pytest.mark.parametrize(("limit", "most"), [("MAX_DECODED_BYTES", 12), ("MAX_REQUEST_PIXELS", 12)])
def test_images_of_all_batches_count_together(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(images, limit, most)
    files = [pa.array([png(row)]) for row in PIXELS]
    assert post(one_after_another(*files[:2]), ARROW).status == 200
    assert post(one_after_another(*files), ARROW).status == 413


def test_columns_that_share_their_bytes_are_refused() -> None:
    with pa.ipc.open_stream(overlapping(512)) as reader:
        assert reader.read_all().column(2).to_pylist() == list(range(512))
    got = post(overlapping(512), ARROW, query="model=features")
    assert (got.status, "must not share bytes" in got.json()["error"]) == (400, True)
