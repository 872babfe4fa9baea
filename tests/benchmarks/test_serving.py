"""The serving benchmark without Ray: its servers, its baselines' parts, and its arithmetic."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import serving, serving_blocks, serving_models
from benchmarks.serving_arms import BARE, BULK, FASTAPI, MANY, ONE, OURS, Arm, Case, baselines
from benchmarks.serving_baselines.batcher import MOST_ROWS, Batcher
from benchmarks.serving_baselines.body import HEADER_LENGTH, answer, parse
from benchmarks.serving_blocks import Found, block, compare
from benchmarks.serving_models import IMAGES, make
from benchmarks.serving_parts import PARTS, Setting
from benchmarks.serving_ratios import (
    STEPS,
    compiled_claims,
    compressed_claims,
    member_claims,
    plain_claims,
    split,
)
from benchmarks.serving_servers import Server, running
from benchmarks.serving_wrk import Load, available, load, write_script
from deployments.protocol.model import Model, Tensor
from deployments.protocol.rest import Codec
from orchestrator.config.ensemble import Member
from orchestrator.config.measure import Execution
from orchestrator.load.generate import closed_loop
from orchestrator.load.request import infer_body, post
from orchestrator.runtime import execute
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
    models = make(tmp_path / "work", "eager", ["trio"])
    arm = baselines(models.folder)[FASTAPI].sent(ONE)
    servers: list[Server] = []
    with running(servers):
        server = Server(FASTAPI, arm.command, free_port(), tmp_path / "server", {})
        servers.append(server)
        compare(server, "trio", models)
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


@pytest.mark.slow
def test_a_server_with_other_answers_is_not_measured(tmp_path: Path) -> None:
    models = make(tmp_path / "work", "eager")
    other: Any = SimpleNamespace(
        folder=models.folder, images=models.images, expected=lambda *_: np.zeros((len(models.images), 10))
    )
    arm = baselines(models.folder)[FASTAPI].sent(ONE)
    servers: list[Server] = []
    with running(servers):
        servers.append(Server(FASTAPI, arm.command, free_port(), tmp_path / "server", {}))
        with pytest.raises(RuntimeError, match="answers of trio differ by"):
            compare(servers[0], "trio", other)


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
    assert server.stop(within_s=0.0) == 1
    assert not server.processes()


def rows_of(rate: float) -> dict[tuple[str, str], dict[str, float]]:
    """Rates that grow from server to server, ours last."""
    names = [*baselines(Path("f")), OURS]
    cases = [ONE, MANY, BULK]
    return {
        (name, case.name): {"per_s": rate * (number + 1), "p50_ms": 1.0 + number}
        for number, name in enumerate(names)
        for case in cases
    }


def test_the_factors_of_the_split_multiply_to_the_whole_gain() -> None:
    rows = {key: row for key, row in rows_of(100.0).items() if key[0] != BARE}
    plain = plain_claims({key: row for key, row in rows.items() if "compiled" not in key[0]})
    assert prod(step["factor"] for step in split(rows)) == pytest.approx(plain["vs_composition"].value)
    assert len(split(rows)) == len(STEPS)
    assert plain["vs_composition"].value == pytest.approx(11.0)
    assert plain["vs_best_baseline"].value == pytest.approx(11 / 8)
    assert plain["vs_best_baseline"].of == "over fastapi"
    assert not plain["p50_vs_fastapi"].met
    assert compiled_claims(rows)["vs_best_compiled_baseline"].of == "over fastapi, compiled"


def test_what_was_not_measured_has_no_value_and_meets_no_goal() -> None:
    rows: Any = {(OURS, MANY.name): {"failed": "it is gone"}, (FASTAPI, MANY.name): {"per_s": 3.0}}
    claims = plain_claims(rows) | compiled_claims(rows) | member_claims(rows)
    assert {claim.plain()["value"] for claim in claims.values()} == {None}
    assert not any(claim.met for claim in claims.values())
    assert {step["factor"] for step in split(rows)} == {None}


def test_the_best_compressed_ensemble_is_the_fastest_that_keeps_its_accuracy() -> None:
    rates = {"trio": 100.0, "trio-bf16": 150.0, "trio-int8": 300.0, "trio-half": 200.0}
    rows: Any = {(OURS, Case(name, 16).name): {"per_s": rate} for name, rate in rates.items()}
    rows[OURS, Case("trio-half", 16, rows=8).name] = {"per_s": 90.0}
    rows["composition", Case("trio", 16, rows=8).name] = {"per_s": 3.0}
    lost = {"trio-bf16": 0.0, "trio-int8": 0.02, "trio-half": 0.004}
    claims = compressed_claims(rows, lost, "digits")
    assert claims["compressed_gain"].value == pytest.approx(2.0)
    assert claims["compressed_gain"].of.startswith("trio-half over trio")
    assert claims["batch8_vs_composition"].value == pytest.approx(30.0)
    none = compressed_claims(rows, {"trio-int8": 0.02}, "digits")
    assert none["compressed_gain"].plain()["value"] is None


class _Sleepy:
    """Answers no block for a while after it was frozen."""

    name = "sleepy"

    def __init__(self, failures: int) -> None:
        self.failures, self.waited = failures, 0

    def wait_until(self, _request: Any, _within_s: float) -> None:
        self.waited += 1

    def load(self, *_: Any, **__: Any) -> Load:
        self.failures -= 1
        if self.failures >= 0:
            raise RuntimeError("0 of 0 requests failed")
        return Load(10, 1.0, 0, 1.0, 2.0)


@pytest.mark.parametrize(("failures", "blocks"), [(0, 1), (2, 1), (3, 0)], ids=["well", "late", "never"])
def test_a_block_is_tried_three_times(failures: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = _Sleepy(failures)
    monkeypatch.setattr(serving_blocks, "load", server.load)
    found = Found()
    block(server, post("http://127.0.0.1:1/", b"", {}), "", Path(), MANY, 1, found)
    assert len(found.blocks) == blocks
    assert server.waited == min(failures + 1, 3)
    assert bool(found.failed) == (blocks == 0)


class _Server:
    """Starts nothing."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.url = name, "http://127.0.0.1:1"

    def wait_until(self, *_: Any) -> None:
        pass

    def stop(self, within_s: float) -> int:  # noqa: ARG002
        return 0

    pause = resume = terminate = wait_until


def test_a_model_with_other_answers_has_no_figures_and_the_others_of_its_server_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = iter([RuntimeError("refused")] * 3 + [Load(10, 1.0, 0, 1.0, 2.0)] * 20)

    def compared(_server: Any, model: str, _models: Any) -> None:
        if model == "tiny-2":
            raise RuntimeError("answers of tiny-2 differ")

    def loaded(*_: Any, connections: int, **__: Any) -> Load:
        if connections == 4:  # warming up
            return Load(1, 1.0, 0, 1.0, 2.0)
        if isinstance(found := next(loads), RuntimeError):
            raise found
        return found

    monkeypatch.setattr(serving_blocks, "Server", _Server)
    monkeypatch.setattr(serving_blocks, "compare", compared)
    monkeypatch.setattr(serving_blocks, "load", loaded)
    arms = {OURS: Arm(("x",)).sent(*(Case(name, 1) for name in ("tiny-2", "tiny-8", "trio")))}
    models: Any = SimpleNamespace(images=ROWS)
    wrong, refused, well = serving.table(serving_blocks.in_turns(arms, models, rounds=2, seconds=1))
    assert wrong["failed"] == "answers of tiny-2 differ"
    assert refused["failed"] == "refused"
    assert "per_s" not in {*wrong, *refused}
    assert well["blocks"] == 2


def test_members_that_torch_does_not_compile_are_held_against_their_own_execution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(execute, "load", lambda _store, _digest, run: asked.append(run))
    store: Any = None
    executions: tuple[Execution, ...] = ("eager", "aoti", "lowered", "openvino")
    for execution in executions:
        serving_models._offline(store, Member(name="m", digest="1" * 64, execution=execution))
    assert asked == ["eager", "eager", "lowered", "openvino"]


def test_a_part_fails_by_itself_and_finished_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def works(_setting: Setting, _measure: Any) -> Any:
        calls.append("works")
        return [{"server": OURS, "per_s": 1.0}], member_claims({})

    def breaks(_setting: Setting, _measure: Any) -> Any:
        calls.append("breaks")
        raise OSError("no room")

    monkeypatch.setattr(serving, "PARTS", {"plain": works, "bulk": breaks})
    monkeypatch.setattr(serving, "available", lambda: True)
    asked = Namespace(work=tmp_path, quick=True, data=None, part=None, rounds=1, seconds=1)
    rows, ratios = serving.measure(asked)
    again, _ = serving.measure(asked)
    assert calls == ["works", "breaks", "breaks"]
    assert [row for row in rows if "failed" in row] == [{"part": "bulk", "failed": "OSError: no room"}]
    assert {row.get("per_s") for row in again} >= {1.0}
    assert ratios["eight_members_p50"].plain()["value"] is None


def test_each_claim_belongs_to_a_part_that_exists() -> None:
    assert list(PARTS) == ["plain", "compiled", "compressed", "members", "bulk", "cold_start", "json"]
    assert Arm(("x",)).sent(ONE, MANY, BULK).models == ("trio", "bulk")
