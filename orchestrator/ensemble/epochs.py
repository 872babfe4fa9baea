"""Other weights or thresholds for a fitted ensemble: the same members, another weight epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.config.calibration import Expectations, Survivors
from orchestrator.config.ensemble import Cascade, Combined, Node, Parallel, Spec, WeightedMix
from orchestrator.config.load import validate
from orchestrator.ensemble.pooled import renormalized
from orchestrator.errors import ConfigError


def reweighted(
    spec: Spec, *, weights: Sequence[float] | None = None, thresholds: Sequence[float] | None = None
) -> Spec:
    """The spec with other weights of its root's members, or thresholds of its stages.

    What was measured or promised with the old ones does not hold any more and is left out: the expected
    metric but that of each member alone, prediction sets, intervals, and a cascade's guarantee. A threshold
    to reject by stays, for clients count on the output; what share it rejects may change.

    Raises:
        ConfigError: the root has no such numbers, or they do not fit it.
    """
    root = spec.tree
    update: dict[str, Any] = {"expected": _alone(root), "prediction_sets": None, "intervals": None}
    if weights is not None:
        if not isinstance(root, Parallel | WeightedMix) or getattr(root, "weights", None) is None:
            raise ConfigError("the ensemble has no weights to set", f"{spec.name} is {root.kind}")
        if isinstance(root, WeightedMix) and root.method in ("per_class", "gate"):
            raise ConfigError(f"weights of method {root.method} are not one for each member", spec.name)
        update["weights"] = tuple(weights)
    if thresholds is not None:
        if not isinstance(root, Cascade):
            raise ConfigError("the ensemble has no thresholds to set", f"{spec.name} is {root.kind}")
        update |= {"thresholds": tuple(thresholds), "guarantee": None, "certificate": None}
    tree = validate(type(root), {**root.plain(), **update}, spec.name)
    if isinstance(tree, Parallel | WeightedMix):
        tree = tree.model_copy(update={"survivors": tuple(_survivors(one, tree) for one in tree.survivors)})
    return spec.model_copy(update={"tree": tree})


def _alone(root: Node) -> Expectations | None:
    """What a fallback needs to know."""
    known = root.expected if isinstance(root, Combined) else None
    if known is None or not known.alone:
        return None
    return Expectations(metric=known.metric, complete=None, alone=known.alone)


def _survivors(known: Survivors, tree: Parallel | WeightedMix) -> Survivors:
    """The members that are left count by the tree's weights, too; their temperature stays, as the tree's."""
    return known.model_copy(update={"weights": renormalized(tree.weights, known.without)})
