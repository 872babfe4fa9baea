"""What every compression step keeps to, on every kind of model it supports.

A new step is one line in `STEPS`; a step that cannot work on a model says so in `UNSUPPORTED`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from orchestrator.compression.plan import State, apply_plan, run_step
from orchestrator.compression.step import Other
from orchestrator.config.measure import Execution
from orchestrator.config.model import (
    AudioCnn,
    AudioCnnKwargs,
    Mlp,
    MlpKwargs,
    ModelSettings,
    TextCnn,
    TextCnnKwargs,
)
from orchestrator.config.steps import (
    Bf16,
    ChannelPruning,
    Clipping,
    Distill,
    DynamicInt8,
    Factorization,
    Fp8,
    HeadPruning,
    MagnitudePruning,
    Merge,
    Qat,
    Recovery,
    StaticInt8,
    Step,
    VocabularyPruning,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.runtime.execute import executions, load, of_module
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.store import Store
from tests.compression import toys
from tests.conformance.fresh import fresh_outputs

STEPS: dict[str, Step] = {
    "distill": Distill(
        model=Mlp(kwargs=MlpKwargs(widths=(8,))),
        others=("other",),
        training=Training(epochs=1, batch_size=32, lr=0.01, loss=DistillationLoss()),
    ),
    "merge": Merge(others=("other",), max_barrier=100.0),
    "merge_side_by_side": Merge(others=("other",), method="side_by_side", max_barrier=100.0),
    "prune_channels": ChannelPruning(amount=0.5),
    "prune_channels_global": ChannelPruning(amount=0.3, criterion="lamp", scope="global", round_to=2),
    "prune_channels_rounds": ChannelPruning(amount=0.5, criterion="taylor", scope="isomorphic", rounds=2),
    "prune_channels_macs": ChannelPruning(macs=0.6),
    "prune_heads": HeadPruning(amount=0.5),
    "prune_vocabulary": VocabularyPruning(least=5),
    "prune_magnitude": MagnitudePruning(amount=0.5),
    "prune_magnitude_layer": MagnitudePruning(amount=0.5, scope="layer"),
    "prune_n_of_m": MagnitudePruning(n_of_m=(2, 4)),
    "factorize": Factorization(rank=0.3),
    "clip": Clipping(method="percentile", percentile=99),
    "recover": Recovery(training=Training(epochs=1, batch_size=32, lr=0.01, loss=DistillationLoss())),
    "qat": Qat(training=Training(epochs=1, batch_size=32, lr=0.01, loss=DistillationLoss())),
    "qat_int4": Qat(
        to="int4_weight_only", training=Training(epochs=1, batch_size=32, lr=0.01, loss=DistillationLoss())
    ),
    "bf16": Bf16(),
    "fp8": Fp8(),
    "int8_static": StaticInt8(rows=32),
    "int8_static_mse": StaticInt8(rows=32, observer="mse"),
    "int8_static_keep_float": StaticInt8(rows=32, keep_float=("body.0",)),
    "int8_static_reduce_range": StaticInt8(rows=32, reduce_range=True),
    "int8_dynamic": DynamicInt8(),
    "int8_weight_only": WeightOnlyInt8(),
    "int4_weight_only": WeightOnlyInt4(group=16),
}
OTHER_ROWS = ("text_cnn", "text_transformer", "audio_cnn", "ft_transformer")
"""Models of text, sound and tables."""
MODELS = ("mlp", "cnn", "resnet", "vit", *OTHER_ROWS)
VARIATIONS = (
    "merge_side_by_side",
    "prune_channels_global",
    "prune_channels_rounds",
    "prune_channels_macs",
    "prune_magnitude_layer",
    "prune_n_of_m",
    "recover",
    "qat",
    "qat_int4",
    "int8_static_mse",
    "int8_static_keep_float",
    "int8_static_reduce_range",
)
"""Steps that are left out on `OTHER_ROWS`, for the time that they take: what these models change for them,
simpler steps meet too."""
STUDENTS: dict[str, ModelSettings] = {
    "text_transformer": TextCnn(kwargs=TextCnnKwargs(dim=8, widths=(1, 2), channels=8)),
    "text_cnn": TextCnn(kwargs=TextCnnKwargs(dim=8, widths=(1, 2), channels=8)),
    "audio_cnn": AudioCnn(kwargs=AudioCnnKwargs(mels=8, widths=(8,))),
}
"""Of distillation, where the rows are none for the step's own."""
KEPT = {"mlp": "body.1", "vit": "body.patches"}
"""Layer that stays float, where it has another name than in the step."""
ATTENTIVE = ("vit", "text_transformer", "ft_transformer")
UNSUPPORTED: dict[tuple[str, str], str] = {
    **{("prune_heads", model): "it has no attention" for model in MODELS if model not in ATTENTIVE},
    **{("prune_vocabulary", model): "it has no tokens" for model in MODELS if not model.startswith("text")},
    **{
        ("fp8", model): "its only linear is the head, of five outputs"
        for model in ("resnet", "text_cnn", "audio_cnn")
    },
}
"""(step, model) -> why."""

pytestmark = pytest.mark.slow

CASES = [
    (step, model)
    for step in STEPS
    for model in MODELS
    if (step, model) not in UNSUPPORTED and not (step in VARIATIONS and model in OTHER_ROWS)
]
BATCHES = (1, 3, 8, 33)


@dataclass(frozen=True)
class Applied:
    """One step applied to one model."""

    before: nn.Module
    after: State
    digest: str
    outputs: NDArray[np.float32]
    """Of the module that the step made, before it was ever saved."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("steps") / "store")


@pytest.fixture(scope="module")
def applied(store: Store) -> dict[tuple[str, str], Applied]:
    torch.set_num_threads(1)
    found = {}
    for step, model in CASES:
        module, signature, settings = toys.toy(model)
        other = toys.near(module)
        context = toys.context(signature.input_shape, other=lambda _, other=other: Other(lambda: other, None))
        parent = toys.put(store, module, signature, settings)
        store.set_ref("other", toys.put(store, other, signature, settings))
        plan = (_for(model, STEPS[step]),)
        after = run_step(plan[0], toys.state(module, signature), context)
        executable = of_module(after.module, signature, _first(after.plan), batch=8)
        outputs = executable(toys.rows(signature.input_shape, 33, seed=5).inputs)
        digest = apply_plan(store, parent, plan, context)
        found[step, model] = Applied(module, after, digest, outputs)
    return found


@pytest.fixture(scope="module")
def fresh(
    store: Store, applied: dict[tuple[str, str], Applied], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, NDArray[np.float32]]:
    """Outputs of every artifact, loaded in another process."""
    rows = {model: toys.rows(toys.MODELS[model][1], 33, seed=5).inputs for model in MODELS}
    wanted = {case.digest: rows[model] for (_, model), case in applied.items()}
    return fresh_outputs(store, wanted, tmp_path_factory.mktemp("fresh"))


def _for(model: str, step: Step) -> Step:
    if isinstance(step, Distill) and model in STUDENTS:
        return step.model_copy(update={"model": STUDENTS[model]})
    if isinstance(step, StaticInt8) and step.keep_float and model in KEPT:
        return step.model_copy(update={"keep_float": (KEPT[model],)})
    return step


def _first(plan: tuple[Step, ...]) -> Execution:
    return "lowered" if isinstance(plan[-1], StaticInt8 | DynamicInt8) else "eager"


@pytest.mark.parametrize(("step", "model"), CASES)
def test_input_is_never_changed(applied: dict[tuple[str, str], Applied], step: str, model: str) -> None:
    case = applied[step, model]
    original, _, _ = toys.toy(model)
    kept = case.before.state_dict()
    assert case.after.module is not case.before
    assert not case.before.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(kept[name], tensor), name


@pytest.mark.parametrize(("step", "model"), CASES)
def test_is_deterministic(
    store: Store, applied: dict[tuple[str, str], Applied], step: str, model: str
) -> None:
    """The stored artifact comes from a second application, on a rebuilt parent."""
    case, manifest = applied[step, model], store.manifest(applied[step, model].digest)
    assert manifest.decisions == case.after.decisions
    stored, mine = store.tensors(case.digest), tensors_of(case.after.module)
    assert stored.keys() == mine.keys()
    for name, tensor in mine.items():
        assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize(("step", "model"), CASES)
def test_any_batch_size_gives_the_same_shape(
    store: Store, applied: dict[tuple[str, str], Applied], step: str, model: str
) -> None:
    case = applied[step, model]
    manifest = store.manifest(case.digest)
    executable = load(store, case.digest, executions(manifest)[0], batch=8)
    inputs = toys.rows(manifest.signature.input_shape, 33, seed=5).inputs
    for batch in BATCHES:
        outputs = executable(inputs[:batch])
        assert outputs.shape == (batch, toys.CLASSES)
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()
        # Kernels round differently by batch, and an int8 tie may then fall the other way.
        error = np.linalg.norm(outputs - case.outputs[:batch]) / np.linalg.norm(outputs)
        assert error < 0.02, batch


@pytest.mark.parametrize(("step", "model"), CASES)
def test_fresh_process_is_bit_equal(
    applied: dict[tuple[str, str], Applied], fresh: dict[str, NDArray[np.float32]], step: str, model: str
) -> None:
    case = applied[step, model]
    assert np.array_equal(fresh[case.digest], case.outputs)


@pytest.mark.parametrize(("step", "model"), CASES)
def test_bytes_are_those_on_disk(
    store: Store, applied: dict[tuple[str, str], Applied], step: str, model: str
) -> None:
    digest = applied[step, model].digest
    folder = store.root / "artifacts" / digest
    assert store.artifact_bytes(digest) == sum(path.stat().st_size for path in folder.iterdir())
