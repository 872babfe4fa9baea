"""Prune, recover, quantize, store, load: one plan after another on models of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.compression.audit import audit
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.steps import ChannelPruning, HeadPruning, Recovery, StaticInt8, Step
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.data.dataset import Part
from orchestrator.measure.cost import count
from orchestrator.runtime.execute import load
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys

RECOVER = Recovery(
    training=Training(
        epochs=10, batch_size=16, lr=0.005, optimizer="adamw", loss=DistillationLoss(form="mse", weight=1.0)
    )
)
CHANNELS, HEADS = ChannelPruning(amount=0.5), HeadPruning(amount=0.5)
IMAGES, FEATURES = (3, 16, 16), (12,)


def follow(store: Store, parent: str, plan: tuple[Step, ...], context: Context, allowed: Any) -> list[str]:
    """The artifact after each step of the plan."""
    return [
        apply_plan(store, parent, plan[: end + 1], Context(**vars(context) | {"allowed": allowed}))
        for end in range(len(plan))
    ]


def answers(store: Store, digest: str, inputs: NDArray[Any], allowed: Any) -> NDArray[np.float32]:
    execution: Any = "lowered" if store.manifest(digest).plan[-1:] == (StaticInt8(),) else "eager"
    return load(store, digest, execution, batch=8, allowed=allowed)(inputs)


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "pruning"),
    [
        ("vit", IMAGES, (CHANNELS, HEADS)),
        ("torch_encoder", IMAGES, (CHANNELS, HEADS)),
        ("hugging_face_vit", IMAGES, (CHANNELS, HEADS)),
        ("hugging_face_encoder", FEATURES, (CHANNELS, HEADS)),
        ("text_transformer", toys.TEXT, (CHANNELS, HEADS)),
        ("hugging_face_text", toys.TEXT, (CHANNELS, HEADS)),
        ("ft_transformer", toys.TABLE, (CHANNELS, HEADS)),
    ],
)
def test_transformers(tmp_path: Path, name: str, shape: tuple[int, ...], pruning: tuple[Step, ...]) -> None:
    built_in = name in toys.MODELS
    module, signature, settings = toys.toy(name) if built_in else toys.imported(name, shape)
    allowed = () if built_in else (f"{toys.__name__}:{name}",)
    store = Store(tmp_path)
    parent = toys.put(store, module, signature, settings)
    inputs = toys.rows(shape).inputs
    pruned, headless, recovered, int8 = follow(
        store, parent, (*pruning, RECOVER, StaticInt8()), toys.context(shape), allowed
    )
    macs = [
        count(rebuild(store, one, allowed=allowed).module, signature).macs
        for one in (parent, pruned, headless)
    ]
    assert macs[0] > macs[1] > macs[2]
    wanted = answers(store, parent, inputs, allowed)
    assert distance(answers(store, recovered, inputs, allowed), wanted) < distance(
        answers(store, headless, inputs, allowed), wanted
    )
    small = answers(store, int8, inputs, allowed)
    assert distance(small, answers(store, recovered, inputs, allowed)) < 0.1
    audited = audit(store, int8, allowed=allowed)["int8"]
    assert audited["left"] == 0
    # Of so small a model attention's products, which stay in float, are a large share.
    assert audited["share"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_cnn", "audio_cnn", "wave_cnn"])
def test_convolutions_over_text_and_sound(tmp_path: Path, name: str) -> None:
    module, signature, settings = toys.toy(name)
    store, rows = Store(tmp_path), toys.rows(signature.input_shape)
    parent = toys.put(store, toys.settled(module, rows), signature, settings)
    context = toys.context(signature.input_shape)
    pruned, recovered, int8 = follow(store, parent, (CHANNELS, RECOVER, StaticInt8()), context, ())
    macs = [count(rebuild(store, one).module, signature).macs for one in (parent, pruned)]
    assert macs[0] > macs[1]
    wanted, inputs = answers(store, parent, rows.inputs, ()), rows.inputs
    assert distance(answers(store, recovered, inputs, ()), wanted) < distance(
        answers(store, pruned, inputs, ()), wanted
    )
    assert distance(answers(store, int8, inputs, ()), answers(store, recovered, inputs, ())) < 0.1
    audited = audit(store, int8)["int8"]
    # The spectrogram's products stay in float, and are said to.
    wanted_float = {"body.front"} if name == "audio_cnn" else set()
    assert {one["layer"] for one in audited["fell_back"]} == wanted_float
    assert store.artifact_bytes(int8) < store.artifact_bytes(recovered)


def test_a_regression(tmp_path: Path) -> None:
    of = toys.signature(FEATURES, "regression")
    settings = Mlp(kwargs=MlpKwargs(widths=(32, 16)))
    module = toys.model(settings, of)
    store = Store(tmp_path)
    parent = toys.put(store, module, of, settings)
    rows = toys.rows(FEATURES)
    targets = answers(store, parent, rows.inputs, ()) + np.float32(0.1)
    part = Part(rows.inputs, targets, rows.ids)
    context = toys.context(FEATURES, train=part, validation=part)
    pruned, recovered, int8 = follow(store, parent, (CHANNELS, RECOVER, StaticInt8()), context, ())
    errors = [np.abs(answers(store, one, rows.inputs, ()) - targets).mean() for one in (pruned, recovered)]
    assert errors[1] < errors[0]
    small = answers(store, int8, rows.inputs, ())
    assert distance(small, answers(store, recovered, rows.inputs, ())) < 0.05
