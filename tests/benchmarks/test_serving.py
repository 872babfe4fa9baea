"""The serving benchmark without Ray: its servers, its baselines' parts, and its arithmetic."""

from __future__ import annotations

import asyncio
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.serving_arms import BARE, FASTAPI, OURS, Case, arms, cases
from benchmarks.serving_baselines.batcher import MOST_ROWS, Batcher
from benchmarks.serving_baselines.body import HEADER_LENGTH, answer, parse
from benchmarks.serving_models import IMAGES, make
from benchmarks.serving_ratios import MANY, STEPS, ratios, split
from benchmarks.serving_servers import Server, running
from benchmarks.serving_wrk import available, load, write_script
from deployments.protocol.model import Model, Tensor
from deployments.protocol.rest import Codec
from orchestrator.load.generate import closed_loop
from orchestrator.load.request import infer_body, post
from tests.pipeline.tiny import free_port

TENSOR = Tensor("input", "UINT8", (-1, *IMAGES.input_shape))
ROWS = np.random.default_rng(5).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_all_servers_read_the_same_rows_from_the_same_bytes(binary: bool) -> None:
    body, headers = infer_body({"input": ROWS}, binary=binary)
    length = {name.lower(): value for name, value in headers.items()}.get(HEADER_LENGTH)
    np.testing.assert_array_equal(parse(body, length), ROWS)
    np.testing.assert_array_equal(Codec(Model("trio", "1", TENSOR, ())).decode(body, length).rows, ROWS)


def test_the_baselines_answer_is_the_mean_of_probabilities() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2, 10)).astype(np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    probabilities, label = answer(logits)["outputs"]
    np.testing.assert_allclose(np.reshape(probabilities["data"], (2, 10)), chances.mean(axis=0), rtol=1e-5)
    assert label["data"] == chances.mean(axis=0).argmax(axis=1).tolist()


def test_the_baselines_batcher_gathers_while_it_computes() -> None:
    sizes: list[int] = []

    def model(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return np.stack([rows, 2 * rows])

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(model)
        parts = [np.full((1 + number % 3, 1), float(number)) for number in range(40)]
        answers = await asyncio.gather(*(batcher(part) for part in parts))
        for part, found in zip(parts, answers, strict=True):
            np.testing.assert_array_equal(found, np.stack([part, 2 * part]))
        return answers

    assert len(asyncio.run(ask())) == 40
    assert max(sizes) <= MOST_ROWS
    assert len(sizes) < 10


def test_a_server_is_compared_measured_frozen_and_ended(tmp_path: Path) -> None:
    models = make(tmp_path / "work", "eager")
    arm = arms(models.folder, str(models.store.root), compiled=False)[FASTAPI]
    servers: list[Server] = []
    with running(servers):
        server = Server(FASTAPI, arm.command, free_port(), tmp_path / "server", {})
        servers.append(server)
        serving._compare(server, arm, models)
        body, headers = infer_body({"input": ROWS[:1]})
        request = post(f"{server.url}/v2/models/trio/infer", body, headers)
        server.pause()
        frozen = closed_loop(request, connections=1, seconds=0.1, timeout_s=0.3)
        assert frozen.outcomes.keys() == {"timeout"}
        server.resume()
        assert closed_loop(request, connections=2, seconds=0.3).outcomes.keys() == {"200"}
        if available():
            script = write_script(tmp_path / "post.lua", body, headers)
            found = load(f"{server.url}/v2/models/trio/infer", script, connections=2, seconds=1)
            assert found.requests > 1
            assert 0 < found.p50_ms <= found.p99_ms
            with pytest.raises(RuntimeError, match="requests failed"):
                load(f"{server.url}/other", script, connections=1, seconds=1)
        assert server.processes()
    assert not server.processes()


def test_other_answers_end_the_benchmark(tmp_path: Path) -> None:
    models = make(tmp_path / "work", "eager")
    other: Any = SimpleNamespace(
        folder=models.folder, images=models.images, expected=lambda *_: np.zeros((len(models.images), 10))
    )
    arm = arms(models.folder, str(models.store.root), compiled=False)[FASTAPI]
    servers: list[Server] = []
    with running(servers):
        servers.append(Server(FASTAPI, arm.command, free_port(), tmp_path / "server", {}))
        with pytest.raises(RuntimeError, match="answers of trio differ by"):
            serving._compare(servers[0], arm, other)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = Server("none", ("-c", "raise SystemExit('no model there')"), 1, tmp_path / "server", {})
    with pytest.raises(RuntimeError, match="no model there"):
        server.wait_until(post("http://127.0.0.1:1/", b"", {}))
    assert server.stop() == 0


def test_what_a_server_leaves_behind_is_ended(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '300'], start_new_session=True)"
    server = Server("leaves", ("-c", code), 1, tmp_path / "server", {})
    server._process.wait()
    assert len(server.processes()) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.serving_servers.GONE_S", 0.0)
        assert server.stop() == 1
    assert not server.processes()


def rows_of(rate: float) -> dict[tuple[str, str], dict[str, float]]:
    """Rates that grow from server to server."""
    found = {}
    for number, (name, arm) in enumerate(arms(Path("f"), "s", compiled=True).items()):
        for model in arm.models:
            for case in cases(model):
                found[name, case.name] = {"per_s": rate * (number + 1), "p50_ms": 1.0 + number}
    return found


def test_the_factors_of_the_split_multiply_to_the_whole_gain() -> None:
    rows = rows_of(100.0)
    found = ratios(rows, 1.2)
    assert prod(step["factor"] for step in split(rows)) == pytest.approx(found["vs_composition"].value)
    assert len(split(rows)) == len(STEPS)
    assert found["vs_composition"].value == pytest.approx(11.0)
    assert found["vs_best_baseline"].value == pytest.approx(11 / 8)
    assert found["vs_best_baseline"].of == "over fastapi"
    assert found["vs_best_compiled_baseline"].of == "over fastapi, compiled"
    assert found["bulk_throughput"].value == pytest.approx(1.1)
    assert not found["p50_vs_fastapi"].met
    assert found["cold_start_s"].met


def test_without_compiled_baselines_there_is_no_split() -> None:
    rows = {key: row for key, row in rows_of(1.0).items() if "compiled" not in key[0]}
    assert split(rows) == []
    assert "vs_best_compiled_baseline" not in ratios(rows, 1.0)
    assert rows[OURS, MANY]["per_s"] > rows[FASTAPI, MANY]["per_s"]
    assert {server for server, _ in rows} >= {OURS, BARE}
    assert Case("trio", 16).name == MANY
