"""Students of ensembles: any tree, its own answers, and no member run twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.compression.ensembles import as_other
from orchestrator.compression.plan import apply_plan
from orchestrator.compression.step import Context
from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import (
    Boosting,
    Cascade,
    Member,
    Node,
    Parallel,
    Spec,
    Stacking,
    WeightedMix,
)
from orchestrator.config.measure import Metric
from orchestrator.config.steps import Distill, Merge, Plan, StaticInt8
from orchestrator.config.training import Training
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import CompressionError
from orchestrator.measure.metrics import softmax
from orchestrator.models.build import build
from orchestrator.runtime.execute import load
from orchestrator.runtime.execute import predict as outputs_of
from orchestrator.runtime.graphs import QUANTIZED, TRACED
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from orchestrator.training.batches import Views
from orchestrator.training.teacher import TeacherCache
from tests.compression import toys
from tests.compression.test_distill import SMALL, TRAINING

ROWS = toys.rows((12,), count=128)


def members(store: Store, count: int = 3, task: str = "classification") -> list[Member]:
    found = []
    for seed in range(count):
        settings = toys.MODELS["mlp"][0]
        signature = toys.signature((12,), task)
        digest = toys.put(store, build(settings, signature, seed=seed).eval(), signature, settings)
        found.append(Member(name=f"m{seed}", digest=digest))
    return found


def said(store: Store, tree: Node) -> dict[Member, Any]:
    return {one: outputs_of(load(store, one.digest, "eager"), ROWS.inputs) for one in distinct(tree)}


def spec_of(store: Store, tree: Node) -> tuple[Spec, str]:
    fitted = fit(tree, said(store, tree), ROWS.targets, Metric(), "classification")
    spec = Spec(name="team", tree=fitted, signature=toys.signature((12,)))
    return spec, store.put_spec(spec)


def context() -> Context:
    return toys.context((12,), train=ROWS, validation=ROWS)


def plan(ensemble: str) -> Plan:
    return (Distill(model=SMALL, ensemble=ensemble, training=TRAINING),)


TREES: dict[str, Callable[[Member, Member, Member], Node]] = {
    "nested": lambda a, b, c: WeightedMix(
        members=(a, Parallel(members=(b, c), rule="logits")), calibration=TemperatureScaling()
    ),
    "cascade": lambda a, b, c: Cascade(stages=(a, WeightedMix(members=(b, c))), tolerance=0.5),
    "stack": lambda a, b, c: Stacking(policy="stacking", members=(a, b, c)),
    "boosting": lambda a, b, c: Boosting(
        policy="boosting", base="m0", members=(a, b, c), factors=(1.0, 0.5, 0.25)
    ),
    "vote": lambda a, b, c: Parallel(members=(a, b, c), rule="vote"),
}


def cache(store: Store, digest: str, training: Training = TRAINING) -> TeacherCache:
    return TeacherCache(store, digest, "toy", ROWS, "classification", training, seed=0, threads=1)


def kept(store: Store, digest: str, training: Training) -> Views:
    found = cache(store, digest, training)
    found.fill(lambda: rebuild(store, digest).module)
    return found.outputs()


@pytest.mark.parametrize("kind", TREES)
def test_the_teacher_says_what_the_walk_says(kind: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    spec, _ = spec_of(store, TREES[kind](*members(store)))
    teacher = as_other(spec, partial(kept, store))
    assert teacher.outputs is not None
    found = teacher.outputs(TRAINING).read(0)
    wanted = replay(spec.tree, said(store, spec.tree), "classification")
    # Members' logits are kept as float16, so a row on the edge of an exit or a vote may fall otherwise.
    close = np.abs(np.exp(found) - np.exp(wanted.outputs)).max(axis=1) < 0.01
    assert close.mean() > 0.95
    assert (np.argmax(found, axis=1) == np.argmax(wanted.outputs, axis=1)).mean() > 0.95
    assert np.isfinite(found).all()


def test_values_of_a_regression_are_mixed_by_the_tree() -> None:
    one, two = (Member(name=name, digest=name) for name in "ab")
    of = toys.signature((12,), "regression")
    tree = WeightedMix(members=(one, two), weights=(0.25, 0.75))
    values = {name: np.full((3, toys.CLASSES), number, np.float32) for name, number in (("a", 4), ("b", 8))}
    teacher = as_other(
        Spec(name="team", tree=tree, signature=of), lambda digest, _: Views(1, lambda _: values[digest])
    )
    assert teacher.outputs is not None
    assert np.array_equal(teacher.outputs(TRAINING).read(0), np.full((3, toys.CLASSES), 7.0))


def test_the_student_comes_near_the_ensemble_and_runs_no_member_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    one, two, three = members(store)
    mix, digest = spec_of(store, WeightedMix(members=(one, two), calibration=TemperatureScaling()))
    _, other = spec_of(store, Cascade(stages=(one, WeightedMix(members=(two, three))), tolerance=0.5))

    def student(ensemble: str, epochs: int) -> str:
        training = TRAINING.model_copy(update={"epochs": epochs})
        step = Distill(model=SMALL, ensemble=ensemble, training=training)
        return apply_plan(store, one.digest, (step,), context())

    wanted = np.exp(replay(mix.tree, said(store, mix.tree), "classification").outputs)

    def distance(digest: str) -> float:
        logits = outputs_of(load(store, digest, "eager"), ROWS.inputs)
        return float(np.abs(softmax(logits) - wanted).mean())

    assert distance(student(digest, 30)) < 0.5 * distance(student(digest, 1))
    assert store.manifest(student(digest, 1)).parents == (one.digest, digest)
    cache(store, three.digest).fill(lambda: rebuild(store, three.digest).module)
    shapes: set[tuple[int, ...]] = set()
    real = nn.Linear.forward

    def counted(self: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(self.weight.shape))
        return real(self, rows)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    assert student(other, 1) not in (student(digest, 1), student(digest, 30))
    assert shapes == {
        tuple(p.shape) for p in build(SMALL, toys.signature((12,)), seed=0).parameters() if p.ndim == 2
    }


def test_a_ref_of_an_ensemble_is_a_teacher_whatever_it_points_at_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two, three = members(store)
    _, digest = spec_of(store, Parallel(members=(one, two)))
    _, later = spec_of(store, Parallel(members=(one, three)))
    store.set_ref("toys/team", digest)
    first = apply_plan(store, one.digest, plan("toys/team"), context())
    assert apply_plan(store, one.digest, plan(digest), context()) == first
    store.set_ref("toys/team", later)
    assert apply_plan(store, one.digest, plan("toys/team"), context()) != first
    step = store.manifest(first).plan[0]
    assert isinstance(step, Distill)
    assert step.ensemble == digest


def test_weights_are_not_merged_with_an_ensemble(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two, _ = members(store)
    _, digest = spec_of(store, Parallel(members=(one, two)))
    with pytest.raises(CompressionError, match="no weights of its own"):
        apply_plan(store, one.digest, (Merge(others=(digest,)),), context())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"others": ["b"]}, "only teacher"),
        ({"weights": [1.0]}, "only teacher"),
        (
            {"training": {"loss": {"kind": "distillation", "features": [{"student": "a", "teacher": "a"}]}}},
            "no layers",
        ),
    ],
)
def test_settings_fit_together(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Distill.model_validate({"model": SMALL.plain(), "ensemble": "mix", **values})


def test_other_students_keep_their_digests() -> None:
    assert "ensemble" not in Distill(model=SMALL).plain()
    assert Distill(model=SMALL, ensemble="mix").plain()["ensemble"] == "mix"


def test_an_int8_member_teaches_beside_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two = members(store, 2)
    small = apply_plan(store, two.digest, (StaticInt8(rows=32),), context())
    tree = Parallel(members=(one, Member(name="small", digest=small, execution="lowered")))
    ensemble = store.put_spec(Spec(name="team", tree=tree, signature=toys.signature((12,))))
    for kept in (QUANTIZED, TRACED):
        kept.clear()  # as in another process, which builds the graph anew
    student = apply_plan(store, one.digest, plan(ensemble), context())
    assert store.manifest(student).model == SMALL
