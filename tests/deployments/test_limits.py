"""What one client can make the others wait for, or keep in memory, is bounded."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from deployments import front
from deployments.protocol import images
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Tensor
from deployments.protocol.raw import MARKS, Encoder
from deployments.protocol.request import MAX_JSON_NUMBERS, Request, check_answer
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import StoreError
from orchestrator.store.store import Store
from tests.deployments.raws import MODELS


def test_who_gives_up_while_all_threads_are_busy_leaves_nothing_to_do() -> None:
    class Body(list[int]):
        """Which can be looked for."""

    goes_on, ran = threading.Event(), list[Any]()

    async def test() -> None:
        busy = [asyncio.create_task(front.in_thread(goes_on.wait, 20)) for _ in range(front.MOST_THREADS)]
        await asyncio.sleep(0.05)
        body = Body([1])
        left = weakref.ref(body)
        late = asyncio.create_task(front.in_thread(ran.append, body))
        del body
        await asyncio.sleep(0.05)
        late.cancel()
        await asyncio.wait([late])
        del late
        gc.collect()
        assert left() is None
        goes_on.set()
        assert all(await asyncio.gather(*busy))
        await front.in_thread(ran.append, "next")

    asyncio.run(test())
    assert ran == ["next"]


def test_an_answer_that_is_too_long_as_json_is_refused() -> None:
    model = MODELS["table"]
    (name,) = [tensor.name for tensor in model.outputs if tensor.name == "probabilities"]
    most = MAX_JSON_NUMBERS // (1 + model.tensors[name].shape[1])
    rows = np.broadcast_to(np.float32(0), (most + 1, 3))
    check_answer(Request(rows[:most], ((name, False),)), model)
    check_answer(Request(rows, ((name, True),)), model)
    with pytest.raises(TooLargeError, match="ask for binary outputs"):
        check_answer(Request(rows, ((name, False),)), model)


def _jpeg(*, scans: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("L", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue() + scans * b"\xff\xda\x00\x02"


def test_files_that_take_far_longer_than_their_pixels_tell_are_refused() -> None:
    expected = Tensor("input", "UINT8", (-1, 1, 8, 8))
    assert images.rows_of([_jpeg(scans=2)], expected).shape == (1, 1, 8, 8)
    with pytest.raises(TooLargeError, match="at most 100 scans"):
        images.rows_of([_jpeg(scans=101)], expected)
    with pytest.raises(ProtocolError, match="is a text"):
        images.rows_of([b"P2 2 1 255\n" + 1000 * b"#\n" + b"1 2"], expected)


def test_a_letter_with_many_accents_is_refused_before_they_are_put_in_order() -> None:
    encoder = Encoder(MODELS["text"], ServingSettings())
    encoder.encode(["a" + MARKS * "\u0301" + "b" + MARKS * "\u0316"], 1)
    # The last is a mark that is made of two, and is none itself.
    for text in ("a" + (MARKS + 1) * "\u0301", ("a" + 3000 * "\u0301\u0316").encode(), 3000 * "\u0f73"):
        with pytest.raises(TooLargeError, match="accents on one letter"):
            encoder.encode([text], 1)


def test_unfinished_files_are_not_looked_for_behind_a_link(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("mine")
    store.clean(older_s=-1)
    temporary = store.root / ".tmp"
    temporary.rmdir()
    temporary.symlink_to(tmp_path / "home")
    with pytest.raises(StoreError, match="cannot clean"):
        store.clean(older_s=-1)
    assert (tmp_path / "home/precious").read_text() == "mine"
