"""A chain: later models see the inputs and what earlier ones said; the last one answers."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.ensemble import Chain, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.pooled import pooled
from orchestrator.ensemble.weights import Weights
from orchestrator.errors import EnsembleError


@pooled.register
def _pooled(node: Chain, scores: Sequence[Floats], _: Weights | None, task: Task) -> Floats:
    """Without some of the members the last one cannot answer, or is missing itself: then the mean of the
    others does."""
    return scores[-1] if len(scores) == len(node.members) else pool(scores, None, task)


@fit_uncalibrated.register
def _fit(node: Chain, ground: Ground) -> Node:
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, None, "let it stand in the run file under a name of its own")
    return node.model_copy(update={"members": fit_all(node.members, ground)})
