"""How well models and ensembles notice rows that are nothing like those they know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.base import fingerprint
from orchestrator.config.data import DataSettings
from orchestrator.config.ensemble import Member, Node
from orchestrator.config.signature import Signature
from orchestrator.data.dataset import Dataset
from orchestrator.data.elsewhere import images_from_elsewhere
from orchestrator.data.load import default_cache, load
from orchestrator.ensemble.combine import Floats, entropy
from orchestrator.ensemble.contributions import member_scores, shares_of
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.tree import Prediction, distinct, replay
from orchestrator.ensemble.uncertainty import detection_auroc, uncertainty
from orchestrator.errors import ConfigError
from orchestrator.pipeline.context import Run
from orchestrator.runtime.outputs import foreign_outputs

Figures = dict[str, Any]
"""By kind of foreign rows: how many `rows`, and the AUROC of finding them among test rows, by `confidence`,
`total` and `epistemic` uncertainty; the last is None of a single model."""
ROWS = 1000
"""Foreign rows, and test rows that they are compared with, at most."""
NAMED = "elsewhere"
"""Kind of the rows that the run file names."""


def noticed(run: Run, trees: Mapping[str, Node]) -> dict[str, Figures]:
    """Figures of models and ensembles by name; nothing of a regression.

    The rows are those of the run file's `elsewhere`, and beside images made-up ones. What models say of them
    is kept in the store, so that each runs once.

    Args:
        run: whose.
        trees: single models and fitted ensembles.

    Raises:
        ConfigError: the rows of `elsewhere` have another shape than the data's.
    """
    if run.dataset.signature.task != "classification":
        return {}
    rows, source = _foreign(run)
    members = {identity(leaf): leaf for tree in trees.values() for leaf in distinct(tree)}
    said = {
        key: foreign_outputs(
            run.store,
            member.digest,
            member.execution,
            rows,
            run.config.latency,
            source=source,
            allowed=run.allowed,
        )
        for key, member in members.items()
    }
    found: dict[str, Figures] = {}
    for name, tree in trees.items():
        own = _doubts(tree, {leaf: run.outputs(leaf, "test")[:ROWS] for leaf in distinct(tree)})
        found[name] = {}
        for kind, inputs in rows.items():
            theirs = _doubts(tree, {leaf: said[identity(leaf)][kind] for leaf in distinct(tree)})
            found[name][kind] = {"rows": len(inputs), "epistemic": None} | {
                measure: detection_auroc(own[measure], theirs[measure]) for measure in own
            }
    return found


def out_of_scope(run: Run, members: Sequence[Member]) -> dict[Member, Output]:
    """What members say of the validation part of the run file's `elsewhere`.

    Raises:
        ConfigError: there is none, or its rows have another shape than the data's.
    """
    if run.config.elsewhere is None:
        raise ConfigError("a reject by recall needs rows that are out of scope", None, "name 'elsewhere'")
    other = _named(run, run.config.elsewhere)
    rows, source = {NAMED: other.part("validation").inputs}, f"{other.digest}, validation"
    return {
        member: foreign_outputs(
            run.store,
            member.digest,
            member.execution,
            rows,
            run.config.latency,
            source=source,
            allowed=run.allowed,
        )[NAMED]
        for member in members
    }


def unsure(prediction: Prediction) -> Floats:
    """1 less the top probability [N]: the baseline of Hendrycks and Gimpel."""
    return np.asarray(-np.expm1(prediction.scores.max(axis=1)))


def sees_images(signature: Signature) -> bool:
    """Whether rows are images."""
    return signature.input_dtype == "uint8" and len(signature.input_shape) == 3


def _doubts(tree: Node, outputs: Mapping[Member, Output]) -> dict[str, Floats]:
    """Each measure of uncertainty that the tree has, [N]."""
    prediction = replay(tree, outputs, "classification")
    if isinstance(tree, Member):
        return {"confidence": unsure(prediction), "total": entropy(prediction.scores)}
    doubt = uncertainty(member_scores(tree, outputs, "classification"), shares_of(tree))
    return {"confidence": unsure(prediction), "total": doubt.total, "epistemic": doubt.epistemic}


def _named(run: Run, settings: DataSettings) -> Dataset:
    """The data set from elsewhere."""
    own = run.dataset.signature
    other = load(settings, seed=run.config.seed, cache=default_cache(), allowed=run.allowed)
    takes, gives = (f"{list(of.input_shape)} of {of.input_dtype}" for of in (own, other.signature))
    if takes != gives:
        raise ConfigError("rows of 'elsewhere' are not of the data's form", gives, f"give rows {takes}")
    return other


def _foreign(run: Run) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Foreign rows by kind, and a name for all that decides them."""
    found: dict[str, npt.NDArray[Any]] = {}
    source: dict[str, Any] = {"data": run.dataset.digest, "seed": run.config.seed, "rows": ROWS}
    if run.config.elsewhere is not None:
        other = _named(run, run.config.elsewhere)
        found[NAMED] = other.part("test").inputs[:ROWS]
        source[NAMED] = other.digest
    if sees_images(run.dataset.signature):
        found |= images_from_elsewhere(run.dataset.part("test").inputs[:ROWS], run.config.seed)
    return found, fingerprint(source)
