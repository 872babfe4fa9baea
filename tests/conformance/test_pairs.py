"""Every sensible pair of steps: a plan of both is saved, and a fresh process answers bit-equal.

One process writes all of them, one loads them all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.compression.plan import State, run_step
from orchestrator.compression.step import Context, Other
from orchestrator.config.measure import Execution
from orchestrator.config.model import ModelSettings, Vit, VitKwargs
from orchestrator.config.steps import ChannelPruning, Distill, DynamicInt8, Factorization, StaticInt8, Step
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.runtime.execute import of_module
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from tests.compression import toys
from tests.conformance.fresh import fresh_outputs
from tests.conformance.test_steps import STEPS

pytestmark = pytest.mark.slow

KINDS: dict[str, Step] = {
    **{name: step for name, step in STEPS.items() if name == step.kind},
    "distill": Distill(
        model=Vit(),
        others=("other",),
        training=Training(epochs=1, batch_size=32, lr=0.01, loss=DistillationLoss()),
    ),
    # They leave linears that fp8 can round.
    "prune_channels": ChannelPruning(amount=0.5, round_to=16),
    "factorize": Factorization(energy=0.86),
}
"""One step of each kind."""
PAIRS = [
    (first, second)
    for first, second in itertools.permutations(KINDS, 2)
    if KINDS[first].stage < KINDS[second].stage
]
TEXT = "prune_vocabulary"
STUDENTS: dict[str, ModelSettings] = {
    "vit": Vit(kwargs=VitKwargs(patch=8, dim=16, depth=1, heads=2)),
    "text_transformer": toys.MODELS["text_transformer"][0],
}
"""The architectures that every kind works on, of images and of text, each with a student that later steps can
work on."""


@dataclass(frozen=True)
class World:
    """The model that every plan starts from."""

    store: Store
    settings: ModelSettings
    start: State
    context: Context


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("pairs") / "store")
    found = {}
    for name in STUDENTS:
        module, signature, settings = toys.toy(name)
        other = toys.near(module)
        context = toys.context(signature.input_shape, other=lambda _, other=other: Other(lambda: other, None))
        found[name] = World(store, settings, toys.state(module, signature), context)
    return found


def _model(pair: tuple[str, str]) -> str:
    return "text_transformer" if TEXT in pair else "vit"


def _step(name: str, model: str) -> Step:
    step = KINDS[name]
    return step.model_copy(update={"model": STUDENTS[model]}) if isinstance(step, Distill) else step


def _rows(model: str) -> NDArray[Any]:
    return toys.rows(toys.MODELS[model][1], 33, seed=5).inputs


@pytest.fixture(scope="module")
def made(worlds: dict[str, World]) -> dict[tuple[str, str], tuple[str, NDArray[np.float32]]]:
    """Of each pair the stored artifact, and the outputs of the plan's module before it was ever saved."""
    found = {}
    for (first, model), pairs in itertools.groupby(PAIRS, key=lambda pair: (pair[0], _model(pair))):
        world = worlds[model]
        between = run_step(_step(first, model), world.start, world.context)
        for pair in pairs:
            after = run_step(_step(pair[1], model), between, world.context)
            executable = of_module(after.module, after.signature, _execution(after), batch=8)
            found[pair] = _put(world, after), executable(_rows(model))
    return found


def _put(world: World, state: State) -> str:
    draft = Draft(
        model=state.model or world.settings,
        signature=state.signature,
        plan=state.plan,
        decisions=state.decisions,
        data="",
        seed=0,
    )
    return world.store.put_artifact(draft, tensors_of(state.module))


@pytest.fixture(scope="module")
def fresh(
    worlds: dict[str, World],
    made: dict[tuple[str, str], tuple[str, NDArray[np.float32]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, NDArray[np.float32]]:
    wanted = {digest: _rows(_model(pair)) for pair, (digest, _) in made.items()}
    return fresh_outputs(worlds["vit"].store, wanted, tmp_path_factory.mktemp("fresh"))


def _execution(state: State) -> Execution:
    return "lowered" if isinstance(state.plan[-1], StaticInt8 | DynamicInt8) else "eager"


def test_every_kind_is_in_a_pair() -> None:
    assert {step.kind for step in KINDS.values()} == {step.kind for step in STEPS.values()}
    assert {name for pair in PAIRS for name in pair} == set(KINDS)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_comes_back_bit_equal(
    pair: tuple[str, str],
    made: dict[tuple[str, str], tuple[str, NDArray[np.float32]]],
    fresh: dict[str, NDArray[np.float32]],
) -> None:
    digest, outputs = made[pair]
    assert np.isfinite(outputs).all()
    assert np.array_equal(fresh[digest], outputs)
