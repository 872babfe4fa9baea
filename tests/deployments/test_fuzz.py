"""Thousands of broken requests over every route, in process: none is answered by a defect, nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.front import Front
from deployments.http.app import HttpApp
from orchestrator.config.serving import ServingSettings
from tests.deployments.calling import Got, send
from tests.deployments.fuzz import Fuzz, RawFuzz
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, served
from tests.deployments.raws import raw_front
from tests.deployments.released import Running, make_store

REQUESTS, MANY_REQUESTS = 2_000, 100_000
ALLOWED = {200, 400, 404, 405, 408, 409, 413, 415, 499}
GROWTH_BYTES = 50 * 2**20
LEAK_BYTES = 8 * 2**20


def check(got: Got, asked: Any) -> None:
    assert got.status in ALLOWED, (got, asked)
    assert int(got.headers["content-length"]) == len(got.body) or asked[0] == "HEAD", asked
    if got.status not in (200, 499) and got.body and "content-encoding" not in got.headers:
        assert list(got.json()) == ["error"], asked
        assert "Traceback" not in got.json()["error"]
        assert len(got.json()["error"]) < 1500


async def run(fuzz: Fuzz, app: HttpApp, count: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(count):
        asked = fuzz.request()
        method, path, body, headers, query = asked
        got = await send(app, method, path, body, headers, query=query)
        check(got, asked)
        found[got.status] = found.get(got.status, 0) + 1
    return found


def application(folder: Path) -> HttpApp:
    """Three models, of one of which the releases can be changed."""
    running = Running(make_store(folder), feedback={"every_s": 0, "answers": 100})
    models = [served(IMAGE_MODEL), served(FEATURE_MODEL)]
    mix = running.front.entries["mix"].served
    limits = ServingSettings(deadline_s=10, max_body_bytes=4096)
    return HttpApp(Front([*models, mix], limits), (), running.routes)


def raw_application(_folder: Path) -> HttpApp:
    """Models that take text, sound and columns."""
    return HttpApp(raw_front(max_body_bytes=4096))


@pytest.mark.parametrize(("make", "over"), [(Fuzz, application), (RawFuzz, raw_application)])
def test_no_request_is_answered_by_a_defect_and_nothing_leaks(
    make: type[Fuzz], over: Callable[[Path], HttpApp], tmp_path: Path
) -> None:
    app = over(tmp_path)

    async def test() -> tuple[dict[int, int], int]:
        fuzz = make(seed=1)
        await run(fuzz, app, REQUESTS // 2)  # caches fill
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        found = await run(fuzz, app, REQUESTS // 2)
        gc.collect()
        return found, tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        found, grown = asyncio.run(test())
    finally:
        tracemalloc.stop()
    assert found[200] > REQUESTS // 50, found  # good ones are among them
    assert {400, 404, 405, 415} <= set(found)
    assert grown < LEAK_BYTES, f"{grown} bytes"


@pytest.mark.slow
def test_after_a_hundred_thousand_requests_the_process_is_as_large_as_before(tmp_path: Path) -> None:
    app = application(tmp_path)

    async def test() -> int:
        fuzz = Fuzz(seed=2)
        await run(fuzz, app, MANY_REQUESTS // 20)
        before = resident_bytes()
        await run(fuzz, app, MANY_REQUESTS - MANY_REQUESTS // 20)
        return resident_bytes() - before

    grown = asyncio.run(test())
    assert grown < GROWTH_BYTES, f"{grown} bytes"


def resident_bytes() -> int:
    """Of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
