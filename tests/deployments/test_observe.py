"""What a request leaves behind: its id, its figures, its line in the log, its trace."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from deployments.exchange import Answer, Question
from deployments.observe import requests as observed
from deployments.observe.meter import Meter
from deployments.observe.requests import LOGGER, JsonLines, TextLines
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import DeadlineError
from tests.deployments.served import CASCADE, MIX, application

Figures = dict[tuple[str, ...], float]
ROW = {"name": "input", "shape": [2, 1, 8, 8], "datatype": "UINT8", "data": [7] * 64 + [200] * 64}
BODY = {"inputs": [ROW]}


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What is written to the log of requests, and a log without a handler of an earlier test."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    logger, keep = logging.getLogger(LOGGER), Keep()
    before = list(logger.handlers)
    logger.handlers = [keep]
    yield found
    logger.handlers = before


def ask(app: Any, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
    async def test() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return [await http.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(asyncio.wait_for(test(), 20))


def figures(reply: httpx.Response) -> Figures:
    """Samples by name and label values, in the order of the labels' names; without the replica."""
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Figures = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            labels = sorted((name, value) for name, value in sample.labels.items() if name != "replica")
            found[sample.name, *(value for _, value in labels)] = sample.value
    return found


def infer(model: str, body: Any = BODY, **more: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", f"/v2/models/{model}/infer", {"json": body, **more}


METRICS: tuple[str, str, dict[str, Any]] = ("GET", "/metrics", {})


def test_requests_members_and_exits_are_counted() -> None:
    app = application(ServingSettings(), (MIX, CASCADE), deep={"fails": 1.0})
    *replies, told = ask(app, infer("cascade"), infer("cascade"), infer("mix"), infer("mix", {}), METRICS)
    assert [reply.status_code for reply in replies] == [200, 200, 503, 400]
    found = figures(told)
    for model, status, count in (("cascade", "200", 2), ("mix", "503", 1), ("mix", "400", 1)):
        assert found["orchestrator_requests_total", "infer", "POST", model, status] == count
    assert found["orchestrator_request_seconds_count", "infer", "cascade"] == 2
    assert found["orchestrator_answers_total", "cascade"] == 2
    assert found["orchestrator_failures_total", "QuorumError", "mix"] == 1
    # A failed call is made once more.
    assert found["orchestrator_member_failures_total", "MemberFailedError", "deep", "mix"] == 2
    assert found["orchestrator_member_seconds_count", "small", "cascade"] == 2
    assert found["orchestrator_stage_seconds_count", "cascade", "0"] == 2
    exits = [found.get(("orchestrator_exit_rows_total", "cascade", stage), 0.0) for stage in "01"]
    assert sum(exits) == 4
    degraded = found["orchestrator_degraded_answers_total", "cascade"]
    assert degraded == sum(reply.json()["parameters"]["degraded"] for reply in replies[:2])
    assert degraded > 0
    assert found["orchestrator_working_requests",] == 1  # this one


def test_questions_that_are_not_answered_in_time_are_failures() -> None:
    app = application(ServingSettings(deadline_s=0.2), (MIX,), deep={"delay_s": 1e6})
    *replies, told = ask(app, infer("mix"), infer("mix"), METRICS)
    assert [reply.status_code for reply in replies] == [504, 504]
    assert figures(told)["orchestrator_failures_total", "DeadlineError", "mix"] == 2


def test_of_a_client_that_is_gone_nothing_is_counted() -> None:
    async def test() -> Any:
        meter = Meter("test")

        async def never(_question: Question) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        task = asyncio.ensure_future(observed.watched("mix", never, meter)(Question(np.zeros((1, 2)), 60.0)))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return meter.snapshot().numbers

    assert not asyncio.run(test())


@pytest.mark.parametrize(("timeout_s", "counted"), [(0.01, 0), (0.2, 1)])
def test_a_client_in_a_hurry_is_no_failure_of_the_server(timeout_s: float, counted: int) -> None:
    async def test() -> Any:
        meter = Meter("test")

        async def never(_question: Question) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        call = observed.watched("mix", never, meter, fair_s=0.1)
        with pytest.raises(DeadlineError):
            await call(Question(np.zeros((1, 2)), timeout_s))
        return meter.snapshot().numbers

    assert len(asyncio.run(test())) == counted


def test_no_text_of_a_client_becomes_a_label() -> None:
    app = application(ServingSettings(), (MIX,))
    *_, told = ask(app, infer("evil"), ("BREW", "/v2", {}), ("GET", "/x" * 50, {}), METRICS)
    found = figures(told)
    asked = {key[1:] for key in found if key[0] == "orchestrator_requests_total"}
    assert asked == {("infer", "POST", "", "404"), ("/v2", "other", "", "405"), ("other", "GET", "", "404")}


@pytest.mark.parametrize("given", [None, "a" * 129, "tab\tinside", "ä"])
def test_a_request_gets_an_id(given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    (first, second) = ask(application(ServingSettings(), (MIX,)), *[("GET", "/v2", {"headers": headers})] * 2)
    ids = [reply.headers["x-request-id"] for reply in (first, second)]
    assert len(set(ids)) == 2
    assert all(len(found) == 32 for found in ids)


def test_a_clients_id_comes_back_and_reaches_the_members(lines: list[logging.LogRecord]) -> None:
    app = application(ServingSettings(request_log="json"), (MIX,))
    headers = {"x-request-id": "order-7"}
    answered, refused = ask(app, infer("mix", headers=headers), infer("mix", {}, headers=headers))
    assert [reply.headers["x-request-id"] for reply in (answered, refused)] == ["order-7"] * 2
    good, bad = (json.loads(JsonLines().format(line)) for line in lines)
    assert good["request"] == "POST /v2/models/mix/infer"
    assert (good["request_id"], good["status"], good["model"], good["rows"]) == ("order-7", 200, "mix", 2)
    assert good["members"] == ["small", "wide", "deep"]
    assert (good["weight_epoch"], good["degraded"]) == (3, False)
    assert good["ms"] > 0
    assert (bad["request_id"], bad["status"]) == ("order-7", 400)
    assert "rows" not in bad


def test_a_hostile_path_stays_on_its_line(lines: list[logging.LogRecord]) -> None:
    ask(application(ServingSettings(request_log="text"), (MIX,)), ("GET", "/a%0a2026 forged", {}))
    for form in (JsonLines(), TextLines()):
        (text,) = [form.format(line) for line in lines]
        assert text.isprintable()
        assert "forged" in text


def test_the_log_is_off_unless_asked(lines: list[logging.LogRecord]) -> None:
    ask(application(ServingSettings(), (MIX,)), infer("mix"))
    assert lines == []


def test_lines_go_to_standard_error(
    lines: list[logging.LogRecord],  # noqa: ARG001 - takes the handlers away
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger(LOGGER).handlers = []
    ask(application(ServingSettings(request_log="json"), (MIX,)), infer("mix"))
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["status"] == 200


def test_each_member_is_a_span_of_the_requests_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("deployments.observe.members._tracer", provider.get_tracer("test"))
    app = application(ServingSettings(), (MIX,), deep={"fails": 1.0})

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        with trace.use_span(provider.get_tracer("test").start_span("request"), end_on_exit=True):
            await app(scope, receive, send)

    ask(traced, infer("mix"))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"request", "member small", "member wide", "member deep"}
    request = spans.pop("request").context
    assert request is not None
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == request.span_id
        assert dict(span.attributes or {}) == {"orchestrator.model": "mix", "orchestrator.rows": 2}
    assert not spans["member deep"].status.is_ok
    assert observed.CURRENT.get() is None
