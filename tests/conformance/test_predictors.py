"""Every way to predict obeys the same rules: executions of an artifact, and drivers of an ensemble.

A new execution or driver adds one line to a table here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.batcher import Batcher
from deployments.drive import drive
from orchestrator.config.ensemble import Spec
from orchestrator.config.measure import Execution
from orchestrator.ensemble.tree import distinct, predict
from orchestrator.runtime import execute
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_CNN, SMALL_MLP, TABLE, put, rows_of, specs

Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    predict: Predictor
    rows: np.ndarray
    outputs: int


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("predictors") / "store")


def in_process(store: Store, spec: Spec) -> Predictor:
    members = {member: execute.load(store, member.digest, member.execution) for member in distinct(spec.tree)}
    return lambda rows: predict(spec.tree, members, rows, spec.signature.task).outputs


def served(store: Store, spec: Spec) -> Predictor:
    """As the deployments do it, without Ray: driven walk, members behind batchers, two callers at once."""
    members = {member: execute.load(store, member.digest, member.execution) for member in distinct(spec.tree)}

    def behind_batcher(member: Any) -> Batcher[np.ndarray]:
        async def call(rows: np.ndarray) -> np.ndarray:
            return members[member](rows)

        return Batcher(call, max_rows=4, max_queued=1000)

    async def answer(rows: np.ndarray) -> np.ndarray:
        calls = {member: behind_batcher(member).submit for member in members}
        halves = [half for half in np.array_split(rows, 2) if len(half)]
        answers = await asyncio.gather(*(drive(spec, calls, half, 30) for half in halves))
        return np.concatenate([prediction.outputs for prediction in answers])

    return lambda rows: asyncio.run(answer(rows))


DRIVERS: dict[str, Callable[[Store, Spec], Predictor]] = {"in process": in_process, "served": served}
ENSEMBLES = ("alone", "average", "cascade", "mix", "table")
ARTIFACTS: dict[str, tuple[Any, Any, Execution]] = {
    "eager cnn": (SMALL_CNN, DIGITS, "eager"),
    "eager mlp": (SMALL_MLP, DIGITS, "eager"),
    "eager regression": (SMALL_MLP, TABLE, "eager"),
}
CASES = [*ARTIFACTS, *(f"{driver}: {name}" for driver in DRIVERS for name in ENSEMBLES)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, store: Store) -> Case:
    if request.param in ARTIFACTS:
        model, signature, execution = ARTIFACTS[request.param]
        member = put(store, "artifact", model, signature, seed=7)
        spec = next(one for one in specs(store) if one.signature == signature)
        return Case(execute.load(store, member.digest, execution), rows_of(spec), signature.outputs)
    driver, _, name = request.param.partition(": ")
    spec = next(one for one in specs(store) if one.name == name)
    return Case(DRIVERS[driver](store, spec), rows_of(spec), spec.signature.outputs)


def test_one_finite_float32_output_row_for_each_input_row(case: Case) -> None:
    for count in (1, 2, 5, 24):
        outputs = case.predict(case.rows[:count])
        assert outputs.shape == (count, case.outputs)
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()


def test_a_row_does_not_depend_on_its_neighbours(case: Case) -> None:
    together = case.predict(case.rows)
    alone = np.concatenate([case.predict(case.rows[i : i + 1]) for i in range(len(case.rows))])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(case.rows))
    np.testing.assert_allclose(case.predict(case.rows[order]), together[order], atol=1e-5)


def test_the_same_rows_give_the_same_answer_and_stay_as_they_were(case: Case) -> None:
    rows = case.rows.copy()
    first = case.predict(rows)
    rows.flags.writeable = False  # as rows from shared memory are
    np.testing.assert_array_equal(case.predict(rows), first)
    np.testing.assert_array_equal(rows, case.rows)


def test_inputs_matter(case: Case) -> None:
    outputs = case.predict(case.rows)
    assert np.ptp(outputs, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", ENSEMBLES)
def test_all_drivers_agree(store: Store, name: str) -> None:
    spec = next(one for one in specs(store) if one.name == name)
    rows = rows_of(spec)
    answers = [make(store, spec)(rows) for make in DRIVERS.values()]
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-5)


def test_no_file_of_the_store_is_a_pickle(store: Store) -> None:
    specs(store)
    suffixes = {path.suffix for path in Path(store.root).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
