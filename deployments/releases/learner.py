"""Labels of recent answers, and the weights that are learned from them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deployments.exchange import Answer, Question
from deployments.releases.running import Running
from orchestrator.config.ensemble import Member, Spec, WeightedMix
from orchestrator.config.release import FeedbackSettings, Labels
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.epochs import reweighted
from orchestrator.ensemble.online import Online, begin, update
from orchestrator.errors import EnsembleError, RefConflictError
from orchestrator.store import releases
from orchestrator.store.store import Store

LEAST = 1e-12
"""Probabilities below this count as it, so that their logarithm is finite."""
SCORES = "member_probs"
MOST_BYTES = 256 * 2**20
"""Of what members said that is kept, since an answer may have any number of rows."""

logger = logging.getLogger(__name__)


def learner_of(spec: Spec, settings: FeedbackSettings | None) -> Learner | None:
    """What learns the weights of a spec; None where there are none to learn.

    That is of mixes of probabilities with one weight for each member, all members models, each once; not of
    several labels.
    """
    tree = spec.tree
    if settings is None or spec.signature.task == "multilabel":
        return None
    if not isinstance(tree, WeightedMix) or tree.rule != "mean" or tree.method in ("per_class", "gate"):
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
        self._bytes = 0
        self._learning = asyncio.Lock()
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
            self._keep(question.request_id, said)
        if SCORES in question.outputs:
            return answer
        outputs = {name: value for name, value in answer.outputs.items() if name != SCORES}
        return replace(answer, outputs=outputs)

    async def learn(self, body: Labels) -> dict[str, Any]:
        """Learn from labels; each answer's count once.

        In a thread, one body after the other: a step a row takes seconds for a large one.

        Returns:
            `accepted`: labelled rows; `unknown`: ids that were not kept, or have a label already.

        Raises:
            EnsembleError: a label is not one; nothing was learned.
        """
        async with self._learning:
            known = {key: self._answers[key] for key in body.labels if key in self._answers}
            if known:
                self._state = await asyncio.to_thread(self._learned, known, body)
            for key, said in known.items():
                if self._answers.get(key) is said:  # and not the answer to a new request of that id
                    self._drop(key)
        unknown = [key for key in body.labels if key not in known]
        return {"accepted": sum(map(len, known.values())), "unknown": unknown}

    def _learned(self, known: Mapping[str, Floats], body: Labels) -> Online:
        labels = [self._labels(key, body.labels[key], len(said)) for key, said in known.items()]
        said = np.concatenate(list(known.values())).astype(np.float64)
        scores = np.log(np.maximum(said, LEAST)) if self._classes else said
        return update(self._state, list(scores.transpose(1, 0, 2)), np.concatenate(labels))

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

    def _keep(self, key: str, said: Floats) -> None:
        self._drop(key)
        self._answers[key] = said
        self._bytes += said.nbytes
        while len(self._answers) > self._settings.answers or self._bytes > MOST_BYTES:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: str) -> None:
        said = self._answers.pop(key, None)
        self._bytes -= 0 if said is None else said.nbytes

    def _labels(self, key: str, value: Any, rows: int) -> Floats:
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


async def new_epoch(
    store: Store, name: str, live: Running, learner: Learner, stage: Callable[[str], Awaitable[None]]
) -> None:
    """Make a weight epoch of what was learned, from staging to commit.

    What was learned about a release that is not the live one any more is dropped.

    Args:
        store: with the releases.
        name: the ref that is served.
        live: what runs, and was learned about.
        learner: of it.
        stage: loads a release here, beside the live one.

    Raises:
        OrchestratorError: it cannot be made, or not be loaded.
    """
    learner.committed()
    spec = reweighted(live.spec, weights=learner.weights)
    if spec.tree == live.spec.tree:
        return
    position = await asyncio.to_thread(releases.live, store, name)
    if position.value != live.digest:
        return  # another one was promoted, and is followed first
    digest = await asyncio.to_thread(releases.put, store, name, spec)
    await stage(digest)
    try:
        await asyncio.to_thread(releases.promote, store, name, digest, expect=position.sequence)
    except RefConflictError as error:
        logger.warning("%s: what was learned is dropped: %s", name, error)
    else:
        record = {"kind": "feedback", "from": live.digest, **learner.plain()}
        await asyncio.to_thread(store.add_record, digest, record)
