"""scikit-learn's combiners on the same members' predictions: a part of `benchmarks.ensembles`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from benchmarks.ensembles_bench import TEAM, Bench, figures
from orchestrator.measure.metrics import log_softmax


class _OneOf(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A member for scikit-learn: its probabilities are columns of the rows."""

    def __init__(self, position: int = 0, classes: int = 10) -> None:
        self.position, self.classes = position, classes
        self.classes_ = np.arange(classes)

    def fit(self, rows: NDArray[Any], labels: NDArray[Any]) -> _OneOf:  # noqa: ARG002
        """Nothing to do; scikit-learn asks for the method."""
        return self

    def predict_proba(self, rows: NDArray[Any]) -> NDArray[Any]:
        start = self.position * self.classes
        return rows[:, start : start + self.classes]

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = self.predict_proba(rows).argmax(1)
        return found


def peers(bench: Bench, validation: NDArray[Any], test: NDArray[Any]) -> dict[str, dict[str, float]]:
    """VotingClassifier, StackingClassifier and CalibratedClassifierCV on the members' probabilities."""
    rows = {
        part: np.hstack([np.exp(log_softmax(bench.said[part][name])) for name in TEAM])
        for part in ("validation", "test")
    }
    members = [(name, FrozenEstimator(_OneOf(position))) for position, name in enumerate(TEAM)]
    voting = VotingClassifier(members, voting="soft").fit(rows["validation"], validation)
    found = {"VotingClassifier soft": voting}
    for method in ("sigmoid", "isotonic", "temperature"):
        calibrated = CalibratedClassifierCV(FrozenEstimator(voting), method=method)
        found[f"voting, calibrated ({method})"] = calibrated.fit(rows["validation"], validation)
    meta = LogisticRegression(max_iter=2000)
    stacking = StackingClassifier(members, meta, cv="prefit").fit(rows["validation"], validation)
    found["StackingClassifier prefit"] = stacking
    scores = {
        name: figures(np.log(np.clip(model.predict_proba(rows["test"]), 1e-12, 1)), test)
        for name, model in found.items()
    }
    hard = VotingClassifier(members, voting="hard").fit(rows["validation"], validation)
    share = float((hard.predict(rows["test"]) == test).mean())
    return scores | {"VotingClassifier hard": {"accuracy": share, "nll": float("inf"), "ece": float("nan")}}
