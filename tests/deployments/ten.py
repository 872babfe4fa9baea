"""Four members of a mix of ten classes whose outputs are looked up, so that they can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deployments.contract import Contract
from deployments.exchange import Question
from orchestrator.config.ensemble import Member, Node, Spec, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.serving import ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct, replay
from tests.ensemble.likely import CLASSES, likely

Outputs = Mapping[Member, np.ndarray]

TEN = Signature(
    task="classification",
    input_shape=(1,),
    input_dtype="float32",
    outputs=CLASSES,
    classes=tuple("0123456789"),
    mean=(0.0,),
    std=(1.0,),
)
FITTED, LABELS = likely(2_000, 0)
UNSEEN, TRUTH = likely(4_000, 1)
_FOUND = fit(WeightedMix(members=tuple(FITTED), quorum=2), FITTED, LABELS, Metric(), "classification")
assert isinstance(_FOUND, WeightedMix)
TREE: WeightedMix = _FOUND
LEAVES = distinct(TREE)
"""Of the fitted tree: with records."""
OUTPUTS: Outputs = dict(zip(LEAVES, UNSEEN.values(), strict=True))


class Table:
    """A member that looks its outputs up: an input is the number of its row."""

    def __init__(self, outputs: np.ndarray) -> None:
        self.outputs = outputs
        self.calls = 0
        self.fault: Callable[[np.ndarray], np.ndarray] | None = None
        self.hangs = False

    async def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.hangs:
            await asyncio.sleep(30)
        found: np.ndarray = self.outputs[rows[:, 0].astype(int)]
        return found if self.fault is None else self.fault(found)


def table(outputs: Outputs = OUTPUTS) -> dict[Member, Table]:
    return {member: Table(found) for member, found in outputs.items()}


def spec_of(tree: Node) -> Spec:
    return Spec(name="ten", tree=tree, signature=TEN)


def contract(
    tree: Node = TREE,
    calls: Mapping[Member, Any] | None = None,
    now: Callable[[], float] = lambda: 0.0,
    **serving: Any,
) -> Contract:
    settings = ServingSettings(**serving)
    return Contract(Spec(name="ten", tree=tree, signature=TEN), calls or table(), settings, clock=now, seed=0)


def question(*rows: int, timeout_s: float = 5.0, outputs: tuple[str, ...] = ()) -> Question:
    return Question(np.array(rows, np.float32)[:, None], timeout_s, frozenset(outputs))


def oracle(names: tuple[str, ...], rows: list[int], tree: Node = TREE) -> np.ndarray:
    """Probabilities of the members of these names."""
    left = {member: found[rows] for member, found in OUTPUTS.items() if member.name in names}
    probs = replay(tree, left, "classification").probs
    assert probs is not None
    return probs


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "permuted": lambda found: np.roll(found, 1, axis=1),
    "one answer": lambda found: np.broadcast_to(OUTPUTS[LEAVES[1]][:1], found.shape).copy(),
    "noise": lambda found: np.random.default_rng(int(abs(found).sum() * 1e3)).permuted(found, axis=1),
}
