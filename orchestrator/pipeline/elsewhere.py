"""How well models and ensembles notice rows that are nothing like those they know."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.base import fingerprint
from orchestrator.config.data import DataSettings, ParquetData
from orchestrator.config.ensemble import Member, Node
from orchestrator.config.signature import Signature, Task
from orchestrator.data.dataset import Dataset
from orchestrator.data.elsewhere import images_from_elsewhere, rows_from_elsewhere
from orchestrator.ensemble.combine import Floats, entropy
from orchestrator.ensemble.contributions import member_scores, shares_of
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.sight import beside, told
from orchestrator.ensemble.tree import Prediction, distinct, replay
from orchestrator.ensemble.uncertainty import detection_auroc, false_positive_rate, uncertainty
from orchestrator.errors import ConfigError
from orchestrator.measure.tasks import class_rules
from orchestrator.pipeline.context import Run
from orchestrator.runtime.outputs import foreign_outputs

Figures = dict[str, Any]
"""By kind of foreign rows: how many `rows`, the AUROC of finding them among test rows, by `confidence`,
`total` and `epistemic` uncertainty, and `fpr95`, by the same: the share of them that look as sure as 95 % of
test rows. `epistemic` is None of a single model. Of the run file's `elsewhere` also `by`, the one of them
that is to be used: it has the best AUROC on validation rows of both kinds (of equal ones the first)."""
ROWS = 1000
"""Foreign rows, and test rows that they are compared with, at most; of files that the data names, all."""
NAMED = "elsewhere"
"""Kind of the rows that the run file names: its test part."""
_CHOOSING = "elsewhere, validation"
"""The validation part of the same, by which a measure is chosen."""


def check_elsewhere(run: Run) -> None:
    """Read the rows from elsewhere that the run names, so that a missing file ends no run after its training.

    Raises:
        as `noticed`
    """
    if run.dataset.signature.task == "classification":
        _foreign(run)


def noticed(run: Run, trees: Mapping[str, Node]) -> dict[str, Figures]:
    """Figures of models and ensembles by name; nothing of a regression.

    The rows are those of the files that `data.elsewhere` names, of the run file's `elsewhere`, and beside
    images made-up ones. What models say of them is kept in the store, so that each runs once.

    Args:
        run: whose.
        trees: single models and fitted ensembles.

    Raises:
        ConfigError: the rows of `elsewhere` have another shape than the data's.
        DataError: a file of `data.elsewhere` is missing, damaged or of another form.
    """
    if run.dataset.signature.task != "classification":
        return {}
    rows, source = _foreign(run)
    members = {identity(leaf): leaf for tree in trees.values() for leaf in distinct(tree)}
    said = _said(run, members.values(), rows, source)
    found: dict[str, Figures] = {}
    for name, tree in trees.items():
        leaves = distinct(tree)
        few, all_ = (
            _doubts(tree, {leaf: run.outputs(leaf, "test")[:most] for leaf in leaves})
            for most in (ROWS, None)
        )
        theirs = {kind: _doubts(tree, {leaf: said[identity(leaf)][kind] for leaf in leaves}) for kind in rows}
        found[name] = {
            kind: _figures(len(inputs), all_ if kind == NAMED or kind in _files(run) else few, theirs[kind])
            for kind, inputs in rows.items()
            if kind != _CHOOSING
        }
        if _CHOOSING in theirs:
            known = _doubts(tree, {leaf: run.outputs(leaf, "validation") for leaf in leaves})
            found[name][NAMED]["by"] = max(
                known, key=lambda measure: detection_auroc(known[measure], theirs[_CHOOSING][measure])
            )
    return found


def _figures(rows: int, own: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": rows, "epistemic": None}
    found |= {measure: detection_auroc(own[measure], theirs[measure]) for measure in own}
    rates = {measure: false_positive_rate(own[measure], theirs[measure]) for measure in own}
    return found | {"fpr95": {"epistemic": None} | rates}


def _files(run: Run) -> Collection[str]:
    """Names of the files that the data names."""
    data = run.config.data
    return data.elsewhere if isinstance(data, ParquetData) else ()


def out_of_scope(run: Run, members: Sequence[Member]) -> dict[Member, Output]:
    """What members say of the validation part of the run file's `elsewhere`.

    Raises:
        ConfigError: there is none, or its rows have another shape than the data's.
    """
    if run.config.elsewhere is None:
        raise ConfigError("a reject by recall needs rows that are out of scope", None, "name 'elsewhere'")
    other = _named(run, run.config.elsewhere)
    rows, source = {NAMED: other.part("validation").inputs}, f"{other.digest}, validation"
    said = _said(run, members, rows, source)
    return {member: said[identity(member)][NAMED] for member in members}


def _said(
    run: Run, members: Iterable[Member], rows: Mapping[str, npt.NDArray[Any]], source: str
) -> dict[tuple[str, str], dict[str, npt.NDArray[np.float32]]]:
    """What members say of foreign rows, by identity and kind."""
    said: dict[tuple[str, str], dict[str, npt.NDArray[np.float32]]] = {}
    for member in members:
        # Those that it sees stand before it.
        seen = [said[identity(one)] for one in member.sees]
        said[identity(member)] = foreign_outputs(
            run.store,
            member.digest,
            member.execution,
            {kind: _seen_rows(inputs, [one[kind] for one in seen]) for kind, inputs in rows.items()},
            run.config.latency,
            source=source,
            allowed=run.allowed,
        )
    return said


def _seen_rows(inputs: npt.NDArray[Any], said: Sequence[Output]) -> npt.NDArray[Any]:
    """Inputs, for a member that sees others beside what these say of them."""
    return beside(inputs, told(said, "classification")) if said else inputs


def unsure(prediction: Prediction, task: Task = "classification") -> Floats:
    """1 less the top probability [N] (Hendrycks and Gimpel 2017); of labels that of the least sure one."""
    kind = class_rules(task)
    doubt = -np.expm1(kind.as_classes(prediction.scores).max(axis=1))
    return np.asarray(kind.by_row(doubt, len(prediction)).max(axis=1))


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
    own, other = run.dataset.signature, run.alike(settings, labelled=False)
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
        found[NAMED] = other.part("test").inputs
        found[_CHOOSING] = other.part("validation").inputs
        source[NAMED] = other.digest
    if sees_images(run.dataset.signature):
        found |= images_from_elsewhere(run.dataset.part("test").inputs[:ROWS], run.config.seed)
    named = rows_from_elsewhere(run.config.data, run.dataset.signature, run.allowed)
    if named:
        source["named"] = {name: hashlib.sha256(rows.tobytes()).hexdigest() for name, rows in named.items()}
    return found | named, fingerprint(source)
