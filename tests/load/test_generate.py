"""The load generator against a server whose behaviour is known, and against `wrk`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import InputError, NotFoundError, ServingError
from orchestrator.load.capacity import highest_rate
from orchestrator.load.connection import Reply
from orchestrator.load.generate import Report, closed_loop, open_loop, poisson_times
from orchestrator.load.request import target_of

ROOT = Path(__file__).parents[2]
AGREES = 1.35
"""`wrk` and the closed loop see the same rate and median within this factor where the server mostly waits."""


@contextmanager
def server(*options: str) -> Iterator[str]:
    line = [sys.executable, "-m", "tests.load.server", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def steady() -> Iterator[str]:
    """Answers after 20 ms."""
    with server("--delay-s", "0.02") as url:
        yield url


def test_poisson_times_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    times = poisson_times(100.0, 200.0, seed=3)
    gaps = np.diff(times)
    assert abs(len(times) / 200.0 - 100.0) < 3
    assert abs(gaps.std() / gaps.mean() - 1) < 0.03, "exponential gaps: deviation and mean are equal"
    assert times[-1] < 200.0
    np.testing.assert_array_equal(times, poisson_times(100.0, 200.0, seed=3))
    assert not np.array_equal(times[:50], poisson_times(100.0, 200.0, seed=4)[:50])


def test_the_request_is_made_from_the_metadata(steady: str) -> None:
    name, target = target_of(steady, rows=2)
    body = target.request.split(b"\r\n\r\n", 1)[1]
    header, raw = json.loads(body[: body.index(b"}]}") + 3]), body[body.index(b"}]}") + 3 :]
    assert name == "toy"
    assert [(one["name"], one["datatype"], one["shape"]) for one in header["inputs"]] == [
        ("image", "UINT8", [2, 2, 3]),
        ("scale", "FP32", [2, 1]),
    ]
    assert len(raw) == 2 * 6 + 2 * 4
    _, in_json = target_of(steady, "toy", binary=False, headers={"X-Api-Key": "k1"})
    assert b"\r\nX-Api-Key: k1\r\n" in in_json.request
    document = json.loads(in_json.request.split(b"\r\n\r\n", 1)[1])
    assert [len(one["data"]) for one in document["inputs"]] == [6, 1]


def test_what_cannot_be_asked_is_said_in_a_sentence(steady: str) -> None:
    with pytest.raises(NotFoundError, match="no such model"):
        target_of(steady, "other")
    with pytest.raises(InputError, match="must begin with http"):
        target_of("127.0.0.1:8000")
    with pytest.raises(ServingError, match="cannot be reached"):
        target_of("http://127.0.0.1:1")


def test_an_open_loop_sends_at_the_drawn_rate(steady: str) -> None:
    report = open_loop(target_of(steady)[1], rate=100, seconds=2, seed=1)
    assert report.requests == len(poisson_times(100, 2, 1)) == report.answered
    assert 20 <= (report.quantile_ms(0.5) or 0) < 200
    assert report.plain()["failed"] == 0


def test_several_requests_in_turns_each_with_its_reply(steady: str) -> None:
    targets = [target_of(steady, seed=seed)[1] for seed in (1, 2)]
    seen: list[tuple[int, Reply | None, float]] = []
    report = open_loop(targets, rate=40, seconds=0.5, seen=lambda *one: seen.append(one))
    assert sorted(number for number, _, _ in seen) == list(range(report.requests))
    assert {reply.status for _, reply, _ in seen if reply is not None} == {200}
    assert sum(latency for _, _, latency in seen) * 1e3 == pytest.approx(sum(report.latencies_ms))


def test_a_stall_is_charged_to_all_who_would_have_waited() -> None:
    with server("--stall-after", "50", "--stall-s", "0.6") as url:
        report = open_loop(target_of(url)[1], rate=100, seconds=2, seed=1)
    slow = sum(latency > 100 for latency in report.latencies_ms)
    # 0.5 s of the stall lie more than 100 ms before its end: about 50 of 200 requests. A closed loop of one
    # connection would have seen one.
    assert 30 <= slow <= 120
    assert (report.quantile_ms(0.9) or 0) > 100


def test_failed_requests_are_infinitely_slow() -> None:
    with server("--fail-every", "5") as url:
        target = target_of(url)[1]
        report = closed_loop(target, connections=2, seconds=0.5)
        assert report.outcomes.keys() == {"200", "503"}
        assert report.quantile_ms(0.5) is not None
        assert report.plain()["p99_ms"] is None
        assert report.plain()["failed"] == report.outcomes["503"] > 0
    gone = closed_loop(target, connections=1, seconds=0.1)
    assert gone.outcomes.keys() == {"connection"}
    assert gone.per_s == 0


def test_answers_after_the_timeout_are_not_waited_for(steady: str) -> None:
    report = open_loop(target_of(steady)[1], rate=50, seconds=0.5, timeout_s=0.005)
    assert report.outcomes.keys() == {"timeout"}
    assert report.seconds < 2


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_closed_loop_agrees_with_wrk(steady: str, tmp_path: Path) -> None:
    target = target_of(steady)[1]
    body = target.request.split(b"\r\n\r\n", 1)[1]
    (tmp_path / "body").write_bytes(body)
    split = body.index(b"}]}") + 3
    script = (
        f'wrk.method = "POST"\nwrk.body = io.open("{tmp_path}/body", "rb"):read("*all")\n'
        f'wrk.headers["Inference-Header-Content-Length"] = "{split}"\n'
    )
    (tmp_path / "post.lua").write_text(script)
    command = ["wrk", "-t1", "-c8", "-d2s", "--latency", "-s", str(tmp_path / "post.lua")]
    done = subprocess.run(
        [*command, f"{steady}/v2/models/toy/infer"], capture_output=True, text=True, check=True
    )
    ours = closed_loop(target, connections=8, seconds=2)
    rate = re.search(r"Requests/sec: +([0-9.]+)", done.stdout)
    median = re.search(r"50% +([0-9.]+)ms", done.stdout)
    assert rate is not None, done.stdout
    assert median is not None, done.stdout
    assert "Non-2xx" not in done.stdout
    assert 1 / AGREES < ours.per_s / float(rate[1]) < AGREES
    assert 1 / AGREES < (ours.quantile_ms(0.5) or 0) / float(median[1]) < AGREES


def test_the_highest_rate_is_found_by_bisection() -> None:
    def probe(rate: float, limit: float = 430.0) -> Report:
        report = Report(rate, 1.0)
        for _ in range(int(rate)):
            report.note("200", 0.005 if rate <= limit else 0.5)
        return report

    found = highest_rate(probe, 20.0, start=50.0, precision=0.02)
    assert 430.0 / 1.02 < found.per_s <= 430.0
    assert len(found.probes) < 14
    below = highest_rate(lambda rate: probe(rate, 3.0), 20.0, start=50.0)
    assert 2.5 < below.per_s <= 3.0
    assert highest_rate(lambda rate: probe(rate, 0.0), 20.0).per_s == 0


def test_a_late_generator_says_nothing_of_the_server() -> None:
    def probe(rate: float) -> Report:
        report = Report(rate, 1.0)
        report.note("200", 0.001)
        report.late_ms.append(12.0)
        return report

    with pytest.raises(ServingError, match=r"the load generator was 12\.0 ms late"):
        highest_rate(probe, 20.0)


@pytest.mark.parametrize("how", [("--rate", "50"), ("--connections", "2"), ()], ids=lambda how: " ".join(how))
def test_the_command(steady: str, how: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["bench", steady, *how, "--seconds", "0.4", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["model"] == "toy"
    assert document["requests"] == document["outcomes"]["200"] > 0
    assert 20 <= document["p50_ms"] <= document["p99_ms"] <= document["max_ms"]
    assert ("offered_per_s" in document) == ("--rate" in how)


def test_the_command_refuses_what_makes_no_sense(steady: str) -> None:
    both = CliRunner().invoke(app, ["bench", steady, "--rate", "1", "--connections", "1"])
    assert both.exit_code == 2
    gone = CliRunner().invoke(app, ["bench", "http://127.0.0.1:1"])
    assert gone.exit_code == 1
    assert "error: the server cannot be reached" in gone.stderr
    for text in ("key", "a key: 1", "key: \u2192", "key: 1\r\nother: 2"):
        assert CliRunner().invoke(app, ["bench", steady, "--header", text]).exit_code == 2
    latin = CliRunner().invoke(app, ["bench", steady, "--seconds", "0.2", "--header", " X-Key : \xe9 "])
    assert latin.exit_code == 0, latin.output
    with server("--fail-every", "1") as url:
        assert CliRunner().invoke(app, ["bench", url, "--seconds", "0.2"]).exit_code == 1
