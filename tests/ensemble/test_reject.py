"""Thresholds to reject by: fitted shares hold, and the same rows are rejected however they are asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.calibration import Reject
from orchestrator.config.ensemble import Combined, Node, Spec, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.ensemble.epochs import reweighted
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.reject import rejected, sureness
from orchestrator.ensemble.tree import predict, replay
from orchestrator.errors import EnsembleError
from tests.compression.toys import signature
from tests.ensemble.toys import A, B, C, D, cascade, lookup, mix, outputs, parallel

TABLE, TARGETS = outputs(rows=600, seed=3)
ELSEWHERE = {
    member: (0.2 * found).astype(np.float32) for member, found in outputs(rows=300, seed=4)[0].items()
}
TREES: dict[str, Node] = {
    "mix": mix(A, B, C, D),
    "average": parallel(A, mix(B, C), D),
    "cascade": cascade(A, parallel(B, C, D)),
}


def fitted(tree: Node, *, outside: bool = False, **wish: object) -> Any:
    asked = tree.model_copy(update={"reject": Reject.model_validate(wish)})
    more = ELSEWHERE if outside else None
    found = fit(asked, TABLE, TARGETS, Metric(), "classification", outside=more)
    assert isinstance(found, Combined)
    return found


def share(tree: Node, table: dict) -> float:  # type: ignore[type-arg]
    found = rejected(tree, replay(tree, table, "classification"))
    assert found is not None
    return float(found.mean())


@pytest.mark.parametrize("by", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("name", TREES)
def test_a_share_of_validation_rows_is_kept(name: str, by: str) -> None:
    tree = fitted(TREES[name], by=by, keep=0.9)
    # Certainties differ from row to row, so that the share is met to the row.
    assert share(tree, TABLE) == pytest.approx(0.1)
    found = replay(tree, TABLE, "classification")
    assert tree.reject is not None
    sure, dropped = sureness(tree.reject, tree, found), rejected(tree, found)
    assert dropped is not None
    assert sure[dropped].max() < tree.reject.threshold < sure[~dropped].min()
    right = found.outputs.argmax(axis=1) == TARGETS
    assert right[~dropped].mean() > right.mean()


@pytest.mark.parametrize("name", TREES)
def test_agreement_keeps_at_least_the_share(name: str) -> None:
    """It has few values: no threshold splits rows on which members agree as far."""
    tree = fitted(TREES[name], by="agreement", keep=0.7)
    assert 0 < share(tree, TABLE) <= 0.3
    reject = tree.reject
    assert reject is not None
    sure = sureness(reject, tree, replay(tree, TABLE, "classification"))
    assert np.all((sure >= 0) & (sure <= 1 + 1e-6))


@pytest.mark.parametrize("by", ["confidence", "entropy", "agreement"])
def test_a_share_of_the_rows_from_elsewhere_is_rejected(by: str) -> None:
    recall = 0.1 if by == "agreement" else 0.8
    tree = fitted(TREES["mix"], outside=True, by=by, recall=recall)
    assert recall <= share(tree, ELSEWHERE) < 1
    if by != "agreement":  # members that agree on rows out of scope tell nothing of them
        assert share(tree, ELSEWHERE) == pytest.approx(0.8, abs=0.01)
        assert share(tree, TABLE) < share(tree, ELSEWHERE)
    with pytest.raises(EnsembleError, match="out of scope"):
        fitted(TREES["mix"], recall=0.8)


def test_a_recall_that_would_reject_every_row_is_refused() -> None:
    """Members agree fully on more of these rows than may be missed."""
    with pytest.raises(EnsembleError, match=r"answers any row at all.*lower recall"):
        fitted(TREES["mix"], outside=True, by="agreement", recall=0.99)


def test_members_that_are_asked_give_the_same_as_a_replay() -> None:
    tree = fitted(TREES["cascade"], keep=0.8)
    rows = np.arange(len(TARGETS))[:, None]
    asked = predict(tree, lookup(TABLE), rows, "classification")
    whole = rejected(tree, replay(tree, TABLE, "classification"))
    np.testing.assert_array_equal(rejected(tree, asked), whole)
    assert whole is not None
    parts = [rejected(tree, asked[slice(at, at + 7)]) for at in range(0, len(rows), 7)]
    np.testing.assert_array_equal(np.concatenate([part for part in parts if part is not None]), whole)


def test_a_given_threshold_is_kept_and_a_spec_needs_one() -> None:
    tree = fitted(TREES["mix"], threshold=0.4)
    assert tree.reject == Reject(threshold=0.4)
    wish = tree.model_copy(update={"reject": Reject()})
    with pytest.raises(ValidationError, match="no fitted sets or reject"):
        Spec(name="mix", tree=wish, signature=signature((4,)))
    with pytest.raises(EnsembleError, match="no threshold"):
        rejected(wish, replay(wish, TABLE, "classification"))


def test_it_is_the_whole_ensembles_and_outlives_other_weights() -> None:
    tree = fitted(TREES["mix"])
    inside = bind(parallel(D.model_copy(update={"name": "mix", "digest": ""}), A), {"mix": tree})
    assert rejected(inside, replay(inside, TABLE, "classification")) is None
    assert isinstance(inside, Combined)
    spec = Spec(name="mix", tree=tree, signature=signature((4,)))
    other = reweighted(spec, weights=(1.0, 0.0, 0.0, 0.0)).tree
    assert isinstance(other, WeightedMix)
    assert other.reject == tree.reject
    assert "reject" not in TREES["mix"].plain()
