"""What the parts of `benchmarks.ensembles` share: models, their outputs, fitting and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Member, Node, WeightedMix
from orchestrator.config.measure import LatencySettings
from orchestrator.config.run import RunConfig
from orchestrator.data.dataset import Dataset
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import Prediction, distinct, replay
from orchestrator.measure.cost import count
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.quality import expected_calibration_error
from orchestrator.runtime import execute
from orchestrator.runtime.execute import Executable
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

RUN_FILE = Path(__file__).with_name("ensembles.yaml")
TEAM = ("a", "b", "c", "d")
LONG = "a-long"
STUDENTS = ("merged", "half", "quarter")
BATCH, THREADS = 16, 1
MEMBERS = tuple(Member(name=name, digest=name) for name in TEAM)
MIX = WeightedMix(members=MEMBERS, rule="auto", calibration=TemperatureScaling())
"""Of probabilities or log-probabilities, whichever is likelier on validation rows."""
LATENCY = LatencySettings(batch=BATCH, threads=THREADS, blocks=15)

Outputs = dict[str, NDArray[np.float32]]
"""By name of a model: logits [N, K]."""


@dataclass(frozen=True)
class Bench:
    """Models, rows, and what the models say of them."""

    config: RunConfig
    store: Store
    data: Dataset
    said: dict[PartName, Outputs]
    """By part."""

    def digest(self, name: str) -> str:
        """Of a model or variant of the run file."""
        return self.store.ref(f"{self.config.name}/{name}")

    def macs(self, name: str) -> float:
        """Operations of a row; those of an int8 variant are its parent's."""
        while name in self.config.variants:
            module = rebuild(self.store, self.digest(name)).module
            if not isinstance(module, torch.fx.GraphModule):
                break
            name = self.config.variants[name].parent
        return float(count(rebuild(self.store, self.digest(name)).module, self.data.signature).macs)


def say(bench: Bench, name: str, member: Member) -> Executable:
    """Ask a model for all rows."""
    model = execute.load(bench.store, member.digest, member.execution, threads=THREADS, batch=BATCH)
    for part, outputs in bench.said.items():
        outputs[name] = execute.predict(model, bench.data.part(part).inputs)
    return model


def outputs_of(bench: Bench, part: PartName, tree: Node) -> dict[Member, NDArray[Any]]:
    return {member: bench.said[part][member.name] for member in distinct(tree)}


def fitted(bench: Bench, tree: Node, kept: slice | NDArray[Any] = slice(None)) -> Node:
    """The tree fitted on validation rows, or some of them; a guarantee on calibration rows."""
    outputs = {member: found[kept] for member, found in outputs_of(bench, "validation", tree).items()}
    unseen = (outputs_of(bench, "calibration", tree), bench.data.part("calibration").targets)
    return fit(
        tree,
        outputs,
        bench.data.part("validation").targets[kept],
        bench.config.metric,
        "classification",
        cost=lambda member: bench.macs(member.name),
        calibration=unseen,
    )


def replayed(bench: Bench, tree: Node, part: PartName = "test") -> Prediction:
    return replay(tree, outputs_of(bench, part, tree), "classification")


def figures(outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    scores = log_softmax(outputs)
    return {
        "accuracy": float((scores.argmax(1) == targets).mean()),
        "nll": float(-scores[np.arange(len(targets)), targets].mean()),
        "ece": expected_calibration_error(outputs, targets),
    }


def accuracy(prediction: Prediction, targets: NDArray[Any]) -> float:
    return float((prediction.outputs.argmax(1) == targets).mean())
