"""Students of one or several teachers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.compression import compress
from orchestrator.compression.distill import mixed
from orchestrator.compression.plan import apply_plan, run_step
from orchestrator.compression.step import Other
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.steps import Bf16, ChannelPruning, Distill, MagnitudePruning, Merge, StaticInt8, Step
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.models.build import build, example_rows
from orchestrator.runtime.execute import executions, load
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys

SMALL = Mlp(kwargs=MlpKwargs(widths=(8,)))
TRAINING = Training(epochs=4, batch_size=32, lr=0.05, loss=DistillationLoss(temperature=2.0, weight=1.0))


def stored(store: Store, count: int = 2) -> list[str]:
    """Teachers that differ by their weights."""
    digests = []
    for number in range(count):
        module, signature, settings = toys.toy("mlp")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.05 * number)
        digests.append(toys.put(store, module, signature, settings))
    return digests


def test_a_mix_is_the_mean_of_probabilities() -> None:
    one, two = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    found = mixed([one, two], (3.0, 1.0), (1.0, 2.0), "classification").softmax(1)
    wanted = 0.75 * one.softmax(1) + 0.25 * (two / 2).softmax(1)
    torch.testing.assert_close(found, wanted)
    without = mixed([one, two], (1.0, 0.0), (1.0, 1.0), "classification").softmax(1)
    torch.testing.assert_close(without, one.softmax(1))


def test_a_mix_of_labels_is_the_mean_of_their_probabilities() -> None:
    one, two = torch.tensor([[2.0, -60.0]]), torch.tensor([[-3.0, 60.0]])
    found = mixed([one, two], (3.0, 1.0), (1.0, 2.0), "multilabel").sigmoid()
    torch.testing.assert_close(found, 0.75 * one.sigmoid() + 0.25 * (two / 2).sigmoid())


def test_values_are_mixed_as_they_are() -> None:
    found = mixed([torch.tensor([[2.0]]), torch.tensor([[6.0]])], (3.0, 1.0), (1.0, 9.0), "regression")
    assert found.tolist() == [[3.0]]


def test_the_student_comes_near_its_teachers_mix() -> None:
    module, signature, _ = toys.toy("mlp")
    second = copy.deepcopy(module)
    with torch.no_grad():
        list(second.parameters())[-2].mul_(-0.5)
    rows = toys.rows((12,), count=256)
    context = toys.context((12,), train=rows, validation=rows, other=lambda _: Other(lambda: second, None))
    inputs = torch.tensor(rows.inputs)
    with torch.no_grad():
        wanted = mixed([module(inputs), second(inputs)], (0.3, 0.7), (1.0, 1.0), "classification").softmax(1)

    def distance(epochs: int) -> float:
        training = TRAINING.model_copy(update={"epochs": epochs})
        step = Distill(model=SMALL, others=("b",), weights=(0.3, 0.7), training=training)
        state = run_step(step, toys.state(module, signature), context)
        with torch.no_grad():
            return float((state.module(inputs).softmax(1) - wanted).abs().mean())

    assert distance(20) < 0.5 * distance(1)


def test_a_stored_student_is_of_its_own_settings(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = stored(store)
    store.set_ref("toys/second", second)
    step = Distill(model=SMALL, others=("toys/second",), training=TRAINING)
    digest = apply_plan(store, first, (step, StaticInt8(rows=32)), toys.context((12,)))
    manifest = store.manifest(digest)
    assert manifest.model == SMALL
    assert [step.kind for step in manifest.plan] == ["distill", "int8_static"]
    executable = load(store, digest, executions(manifest)[0])
    assert executable(toys.rows((12,)).inputs[:5]).shape == (5, toys.CLASSES)


@pytest.mark.parametrize("step", ["distill", "merge"])
def test_another_model_must_answer_the_same_question(step: str, tmp_path: Path) -> None:
    """Classes in another order: the mix of both would be of neither."""
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("mlp")
    names = signature.model_copy(update={"classes": tuple("abcde")})
    turned = signature.model_copy(update={"classes": tuple("edcba")})
    first, second = (toys.put(store, module, of, settings) for of in (names, turned))
    steps: dict[str, Step] = {
        "distill": Distill(model=SMALL, others=(second,)),
        "merge": Merge(others=(second,)),
    }
    with pytest.raises(CompressionError, match="classes differ from the parent's"):
        apply_plan(store, first, (steps[step],), toys.context((12,)))


def test_teachers_of_other_shapes_are_refused() -> None:
    with pytest.raises(CompressionError, match="different shapes"):
        mixed([torch.zeros(2, 3), torch.zeros(2, 4)], (1.0, 1.0), (1.0, 1.0), "classification")


def test_other_weights_run_no_teacher_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    first, second = stored(store)
    context = toys.context((12,))

    def student(*weights: float) -> str:
        step = Distill(model=SMALL, others=(second,), weights=weights, training=TRAINING)
        return apply_plan(store, first, (step,), context)

    before = student(0.5, 0.5)
    calls: list[tuple[int, ...]] = []
    real = nn.Linear.forward

    def counted(self: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(self.weight.shape))
        return real(self, rows)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    assert student(0.9, 0.1) != before
    teacher, pupil = toys.toy("mlp")[0], build(SMALL, toys.signature((12,)), seed=0)
    theirs, its = ({tuple(p.shape) for p in net.parameters() if p.ndim == 2} for net in (teacher, pupil))
    assert calls
    assert not (theirs - its) & set(calls)


def test_a_student_of_a_pruned_teacher_has_its_own_form(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (first,) = stored(store, 1)
    context = toys.context((12,))
    pruned = apply_plan(store, first, (ChannelPruning(amount=0.5),), context)
    digest = apply_plan(store, pruned, (Distill(model=SMALL, training=TRAINING), Bf16()), context)
    again = rebuild(store, digest)
    assert [step.kind for step in again.manifest.plan] == ["distill", "bf16"]
    assert again.module(example_rows(again.manifest.signature, 3)).shape == (3, toys.CLASSES)


@pytest.mark.parametrize("model", [SMALL, toys.MODELS["mlp"][0]], ids=["another", "the same"])
def test_zeros_of_the_parent_bind_no_student(tmp_path: Path, model: Mlp) -> None:
    store = Store(tmp_path / "store")
    (first,) = stored(store, 1)
    context = toys.context((12,))
    thin = apply_plan(store, first, (MagnitudePruning(amount=0.6),), context)
    student = rebuild(store, apply_plan(store, thin, (Distill(model=model, training=TRAINING),), context))
    for weight in weights_of(student.module).values():
        assert (weight != 0).all()


def test_an_int8_model_is_no_teacher(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = stored(store)
    context = toys.context((12,))
    small = apply_plan(store, second, (StaticInt8(rows=32),), context)
    for parent, others in ((small, ()), (first, (small,))):
        step = Distill(model=SMALL, others=others, training=TRAINING)
        with pytest.raises(CompressionError, match=f"can neither teach nor be merged: {small}.*float model"):
            apply_plan(store, parent, (step,), context)


def test_from_python_a_student_is_saved_with_both_settings(tmp_path: Path) -> None:
    module, _, settings = toys.toy("mlp")
    part = toys.rows((12,))
    plan: list[dict[str, Any]] = [{"kind": "distill", "model": SMALL.plain(), "training": TRAINING.plain()}]
    variant = compress(module.get_submodule("body"), plan, (part.inputs, part.targets), model=settings)
    digest = variant.save(tmp_path / "store")
    store = Store(tmp_path / "store")
    manifest = store.manifest(digest)
    assert manifest.model == SMALL
    assert store.manifest(manifest.parents[0]).model == settings
    executable = load(store, digest, "eager")
    assert np.array_equal(executable(part.inputs[:4]), variant(part.inputs[:4]))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"weights": [1.0]}, "needs 2 numbers"),
        ({"weights": [-1.0, 2.0]}, "must be >= 0"),
        ({"temperatures": [0.0, 1.0]}, "must be > 0"),
        ({"training": {"loss": {"kind": "cross_entropy"}}}, "must be of kind distillation"),
    ],
)
def test_settings_fit_together(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Distill.model_validate({"model": SMALL.plain(), "others": ["b"], **values})
