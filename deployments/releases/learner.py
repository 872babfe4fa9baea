"""Labels of recent answers, and the weights that are learned from them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from deployments.exchange import Answer, Question
from deployments.releases.running import Running
from orchestrator.config.ensemble import Member, Spec, WeightedMix
from orchestrator.config.release import FeedbackSettings, Labels
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.online import begin, update
from orchestrator.errors import EnsembleError

LEAST = 1e-12
"""Probabilities below this count as it, so that their logarithm is finite."""
SCORES = "member_probs"


def learner_of(spec: Spec, settings: FeedbackSettings | None) -> Learner | None:
    """What learns the weights of a spec; None where there are none to learn.

    That is of mixes with one weight for each member, all members models, each once; not of several labels.
    """
    tree = spec.tree
    if settings is None or spec.signature.task == "multilabel":
        return None
    if not isinstance(tree, WeightedMix) or tree.method in ("per_class", "gate"):
        return None
    if not all(isinstance(member, Member) for member in tree.members):
        return None
    return Learner(spec, settings) if len(set(tree.members)) == len(tree.members) else None


class Learner:
    """Keeps what members said, until labels come.

    Args:
        spec: a weighted mix of models.
        settings: how it learns.
        clock: seconds, rising.
    """

    def __init__(
        self, spec: Spec, settings: FeedbackSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        assert isinstance(spec.tree, WeightedMix)
        assert spec.tree.weights is not None
        self._settings, self._clock = settings, clock
        signature = spec.signature
        self._classes = signature.task == "classification"
        self._outputs = signature.outputs
        self._state = begin(
            spec.tree.weights,
            rate=settings.rate,
            floor=settings.floor,
            scale=() if self._classes else signature.target_std,
        )
        self._answers: OrderedDict[str, Floats] = OrderedDict()
        self._made: tuple[float, ...] = ()
        self._committed_rows = 0
        self._committed_at = -settings.every_s + clock()

    @property
    def weights(self) -> tuple[float, ...]:
        """Learned so far."""
        return self._state.weights

    @property
    def due(self) -> bool:
        """Whether a new weight epoch may be made."""
        fresh = self._state.rows - self._committed_rows
        waited_s = self._clock() - self._committed_at
        return fresh >= self._settings.min_rows and waited_s >= self._settings.every_s

    async def ask(self, running: Running, question: Question) -> Answer:
        """An answer, of which is kept what the members said."""
        if not question.request_id:
            return await running.ask(question)
        answer = await running.ask(replace(question, outputs=question.outputs | {SCORES}))
        said = answer.outputs[SCORES]
        if not answer.missing:
            self._answers[question.request_id] = said
            self._answers.move_to_end(question.request_id)
            if len(self._answers) > self._settings.answers:
                self._answers.popitem(last=False)
        if SCORES in question.outputs:
            return answer
        outputs = {name: value for name, value in answer.outputs.items() if name != SCORES}
        return replace(answer, outputs=outputs)

    def learn(self, body: Labels) -> dict[str, Any]:
        """Learn from labels; each answer's count once.

        Returns:
            `accepted`: labelled rows; `unknown`: ids that were not kept, or have a label already.

        Raises:
            EnsembleError: a label is not one; nothing was learned.
        """
        known = {key: value for key, value in body.labels.items() if key in self._answers}
        labels = [self._labels(key, value) for key, value in known.items()]
        if known:
            said = np.concatenate([self._answers[key] for key in known]).astype(np.float64)
            scores = np.log(np.maximum(said, LEAST)) if self._classes else said
            self._state = update(self._state, list(scores.transpose(1, 0, 2)), np.concatenate(labels))
        for key in known:
            del self._answers[key]
        unknown = [key for key in body.labels if key not in known]
        return {"accepted": sum(map(len, labels)), "unknown": unknown}

    def committed(self) -> None:
        """A weight epoch is made of what was learned."""
        self._made = self._state.weights
        self._committed_rows = self._state.rows
        self._committed_at = self._clock()

    def made(self, spec: Spec) -> bool:
        """Whether a spec is the weight epoch that was made last of what was learned here."""
        return getattr(spec.tree, "weights", None) == self._made

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "weights": list(self._state.weights),
            "rows": self._state.rows,
            "kept_answers": len(self._answers),
        }

    def _labels(self, key: str, value: Any) -> Floats:
        rows = len(self._answers[key])
        try:
            found = np.asarray(value, dtype=np.float64).reshape(rows, -1 if self._classes else self._outputs)
        except ValueError as error:
            raise EnsembleError("labels do not fit the answer's rows", key[:80], f"it has {rows}") from error
        if not np.isfinite(found).all():
            raise EnsembleError("a label is not a number", key[:80])
        if not self._classes:
            return found
        if found.shape[1] != 1 or (found != np.floor(found)).any() or (found < 0).any():
            raise EnsembleError("labels are class numbers, one a row", key[:80], f"it has {rows} rows")
        return found[:, 0].astype(np.int64)
