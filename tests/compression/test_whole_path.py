"""Prune, recover, quantize, store, serve: one plan after another on models of every kind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from deployments.member import Member
from orchestrator.compression.audit import audit
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config import ensemble as tree
from orchestrator.config.model import ImportedModel, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.signature import Signature
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
OWN_MODEL = Path(__file__).parents[2] / "examples" / "own_model"


def follow(store: Store, parent: str, plan: tuple[Step, ...], context: Context, allowed: Any) -> list[str]:
    """The artifact after each step of the plan."""
    return [
        apply_plan(store, parent, plan[: end + 1], Context(**vars(context) | {"allowed": allowed}))
        for end in range(len(plan))
    ]


def answers(store: Store, digest: str, inputs: NDArray[Any], allowed: Any) -> NDArray[np.float32]:
    execution: Any = "lowered" if store.manifest(digest).plan[-1:] == (StaticInt8(),) else "eager"
    return load(store, digest, execution, batch=8, allowed=allowed)(inputs)


def served(store: Store, digest: str, inputs: NDArray[Any], allowed: Any) -> NDArray[np.float32]:
    """Of a member of Ray Serve, in this process, whose callers ask for their rows at once."""
    member = Member(
        str(store.root),
        tree.Member(name="int8", digest=digest, execution="lowered"),
        batch=8,
        threads=1,
        max_queued_rows=len(inputs),
        allow=allowed,
    )

    async def asked() -> list[NDArray[np.float32]]:
        return list(await asyncio.gather(*(member.predict(part) for part in np.split(inputs, (1, 4, 9)))))

    return np.concatenate(asyncio.run(asked()))


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
    np.testing.assert_allclose(served(store, int8, inputs, allowed), small, atol=1e-5)
    audited = audit(store, int8, allowed=allowed)["int8"]
    assert audited["left"] == 0
    # Of so small a model attention's products, which stay in float, are a large share.
    assert audited["share"] > 0.7


def without_attention(
    store: Store, toy: tuple[nn.Module, Signature, ModelSettings], allowed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Prune, recover, quantize and serve; gives what the audit says of the int8 kernels."""
    module, signature, settings = toy
    rows = toys.rows(signature.input_shape)
    parent = toys.put(store, toys.settled(module, rows), signature, settings)
    context = toys.context(signature.input_shape)
    pruned, recovered, int8 = follow(store, parent, (CHANNELS, RECOVER, StaticInt8()), context, allowed)
    macs = [count(rebuild(store, one, allowed=allowed).module, signature).macs for one in (parent, pruned)]
    assert macs[0] > macs[1]
    wanted, inputs = answers(store, parent, rows.inputs, allowed), rows.inputs
    assert distance(answers(store, recovered, inputs, allowed), wanted) < distance(
        answers(store, pruned, inputs, allowed), wanted
    )
    small = answers(store, int8, inputs, allowed)
    assert distance(small, answers(store, recovered, inputs, allowed)) < 0.1
    np.testing.assert_allclose(served(store, int8, inputs, allowed), small, atol=1e-5)
    assert store.artifact_bytes(int8) < store.artifact_bytes(recovered)
    audited: dict[str, Any] = audit(store, int8, allowed=allowed)["int8"]
    return audited


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_cnn", "audio_cnn", "wave_cnn"])
def test_convolutions_over_text_and_sound(tmp_path: Path, name: str) -> None:
    audited = without_attention(Store(tmp_path), toys.toy(name))
    # The spectrogram's products stay in float, and are said to.
    wanted_float = {"body.front"} if name == "audio_cnn" else set()
    assert {one["layer"] for one in audited["fell_back"]} == wanted_float


def test_a_classification_of_features(tmp_path: Path) -> None:
    settings, of = Mlp(kwargs=MlpKwargs(widths=(128, 64))), toys.signature(FEATURES)
    assert not without_attention(Store(tmp_path), (toys.model(settings, of), of, settings))["fell_back"]


@pytest.mark.slow
def test_convolutions_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.need_timm()
    monkeypatch.syspath_prepend(str(OWN_MODEL))
    settings, of = ImportedModel(factory="timm_net:create"), toys.signature(IMAGES)
    allowed = (settings.factory,)
    without_attention(Store(tmp_path), (toys.model(settings, of, allowed), of, settings), allowed)


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
