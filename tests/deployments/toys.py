"""Real artifacts and specs over them, small enough to build in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.ensemble import Boosting, Cascade, Chain, Later, Member, Parallel, Spec, WeightedMix
from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.ensemble.tree import Prediction, distinct, predict
from orchestrator.models.build import build
from orchestrator.runtime import execute
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

DIGITS = Signature(
    task="classification",
    input_shape=(1, 8, 8),
    input_dtype="uint8",
    outputs=10,
    classes=tuple("0123456789"),
    mean=(78.0,),
    std=(96.0,),
)
TABLE = Signature(
    task="regression",
    input_shape=(5,),
    input_dtype="float32",
    outputs=2,
    mean=(0.0,) * 5,
    std=(1.0,) * 5,
    target_mean=(3.0, -1.0),
    target_std=(2.0, 0.5),
)
IMAGES = np.random.default_rng(1).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
FEATURES = np.random.default_rng(2).normal(size=(24, 5)).astype(np.float32)
SMALL_MLP = Mlp(kwargs=MlpKwargs(widths=(16,)))
SMALL_CNN = Cnn(kwargs=CnnKwargs(channels=(8, 8), hidden=16))


def put(store: Store, name: str, model: ModelSettings, signature: Signature, seed: int) -> Member:
    """An untrained artifact."""
    module = build(model, signature, seed=seed)
    draft = Draft(model=model, signature=signature, data="none", seed=seed)
    return Member(name=name, digest=store.put_artifact(draft, tensors_of(module)))


def specs(store: Store) -> tuple[Spec, ...]:
    """One of each kind, a nested one among them, a single model, and a regression."""
    small, other = (put(store, f"mlp{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
    cnn = put(store, "cnn", SMALL_CNN, DIGITS, 2)
    tables = tuple(put(store, f"table{seed}", SMALL_MLP, TABLE, seed) for seed in (0, 1))
    shown = DIGITS.model_copy(update={"input_shape": (64 + 2 * 10,), "input_dtype": "float32"})
    last = put(store, "last", SMALL_MLP, shown, 3).model_copy(update={"sees": (small, cnn)})
    mix = WeightedMix(members=(small, other, cnn), weights=(0.5, 0.2, 0.3))
    return (
        Spec(name="average", tree=Parallel(members=(small, other, cnn)), signature=DIGITS, weight_epoch=1),
        Spec(
            name="cascade",
            tree=Cascade(stages=(small, mix, cnn), thresholds=(_middling(store, small), 0.3)),
            signature=DIGITS,
        ),
        Spec(name="mix", tree=mix, signature=DIGITS),
        Spec(name="table", tree=WeightedMix(members=tables, weights=(0.9, 0.1)), signature=TABLE),
        Spec(name="alone", tree=cnn, signature=DIGITS),
        Spec(
            name="chained",
            tree=Chain(policy="chain", members=(small, cnn, last), later=(Later(model=SMALL_MLP),)),
            signature=DIGITS,
        ),
        Spec(
            name="boosted",
            tree=Boosting(policy="boosting", base="table0", members=tables, factors=(1.0, 0.3)),
            signature=TABLE,
        ),
    )


def _middling(store: Store, member: Member) -> float:
    """A threshold that half of the images pass, midway between two confidences."""
    logits = execute.load(store, member.digest, member.execution)(IMAGES).astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidences = np.sort((chances / chances.sum(axis=1, keepdims=True)).max(axis=1))
    return float(confidences[11:13].mean())


def rows_of(spec: Spec) -> np.ndarray:
    return IMAGES if spec.signature.input_dtype == "uint8" else FEATURES


def in_process(store: Store, spec: Spec, rows: np.ndarray) -> Prediction:
    members = {member: execute.load(store, member.digest, member.execution) for member in distinct(spec.tree)}
    return predict(spec.tree, members, rows, spec.signature.task)


def open_store(folder: Path) -> tuple[Store, tuple[Spec, ...]]:
    store = Store(folder / "store")
    return store, specs(store)
