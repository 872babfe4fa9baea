"""Follows the store: what a served name's refs say is loaded beside what runs, and takes over between two
requests.

A release takes over by one assignment, and a request asks the release that it found: no answer mixes two.
What cannot be loaded changes nothing but the state, which says so. `stage` loads before the ref is moved, so
that a promotion over several processes can make sure that each of them is able to; a process that was not
asked follows the ref within `LOOK_S`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from deployments.bundle import answer_each
from deployments.exchange import FAIR_S, Answer, Question
from deployments.observe.meter import Snapshot
from deployments.observe.replicas import this_replica
from deployments.releases import trial as trials
from deployments.releases.learner import Learner, learner_of, new_epoch
from deployments.releases.running import Engine, Running
from deployments.releases.shielded import finished
from deployments.releases.trial import Trial
from deployments.stream import InStages
from orchestrator.config.ensemble import Spec
from orchestrator.config.release import Canary, FeedbackSettings, Labels
from orchestrator.errors import ConfigError, NotFoundError, OrchestratorError, ServingError
from orchestrator.store import releases
from orchestrator.store.store import Store

LOOK_S = 1.0
"""Time between two looks at the store."""
AGAIN_S = 60.0
"""Time after which a release that could not run is tried again."""
COMPARISONS = 32
"""Most requests that are answered a second time, to be compared, at once; beyond that they are not."""

logger = logging.getLogger(__name__)


class Follower(InStages):
    """A served name of which the store says what runs.

    Args:
        store: with the releases.
        name: the ref that is served, like `digits/mix`.
        open_engine: loads a spec; called in a thread.
        feedback: learn weights from labels.
        renewed: told the spec that took over.
        fair_s: least time of a question that a candidate must answer in time.

    Raises:
        OrchestratorError: neither the live release nor an earlier one can be loaded.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        open_engine: Callable[[Spec], Engine],
        *,
        feedback: FeedbackSettings | None = None,
        renewed: Callable[[Spec], None] = lambda _: None,
        fair_s: float = FAIR_S,
    ) -> None:
        self._store, self._name, self._open = store, name, open_engine
        self._renewed, self._fair_s = renewed, fair_s
        self._problem = ""
        self._refused = ("", 0.0)
        self._live = self._first()
        self._staged: Running | None = None
        self._candidate: Running | None = None
        self._trial: Trial | None = None
        self._canary_seen = 0
        self._stopped = ""
        self._feedback = feedback
        self._learner: Learner | None = learner_of(self._live.spec, feedback)
        self._changing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._comparing = set[asyncio.Task[None]]()
        self._learning = set[asyncio.Task[None]]()

    @property
    def spec(self) -> Spec:
        """What is live."""
        return self._live.spec

    async def predict(self, question: Question) -> Answer:
        """The live release's answer, or in a canary's share the candidate's.

        Raises:
            OrchestratorError: the live release's.
        """
        self._look()
        trial, candidate, live = self._trial, self._candidate, self._live
        # What a stage said must be of the release that answers in the end.
        if question.told is not None:
            return await self._ask_live(question)
        if trial is None or candidate is None or not trials.drawn(question.request_id, trial.settings.share):
            return await self._ask_live(question)
        if not question.outputs <= candidate.model.tensors.keys():
            return await self._ask_live(question)  # it has no such output, which is no fault of either
        if trial.settings.shadow or question.version:
            answer = await self._ask_live(question)
            self._compare(trial, candidate, replace(question, version=""), answer, is_live=True)
            return answer
        started = time.monotonic()
        try:
            answer = await trials.tried(candidate, question)
        except OrchestratorError as error:
            self._failed(trial, question, error)
            left_s = question.timeout_s - (time.monotonic() - started)
            return await self._ask_live(replace(question, timeout_s=left_s))
        self._compare(trial, live, question, answer, is_live=False)
        return answer

    async def predict_many(self, questions: Sequence[Question]) -> list[Answer | OrchestratorError]:
        """The answer to each question, or why there is none."""
        return await answer_each(self.predict, questions)

    async def _ask_live(self, question: Question) -> Answer:
        learner = self._learner
        return await (self._live.ask(question) if learner is None else learner.ask(self._live, question))

    async def ready(self) -> Spec:
        """Returns what is live when it can answer.

        Raises:
            OrchestratorError: it cannot.
        """
        self._look()
        await self._live.engine.ready()
        return self._live.spec

    async def snapshots(self) -> list[Snapshot]:
        """What the live release's processes counted."""
        return await self._live.engine.snapshots()

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: the live release hangs.
        """
        self._live.engine.check_health()

    async def stage(self, digest: str) -> None:
        """Load a release beside the live one, and ask it once.

        Raises:
            OrchestratorError: it cannot be loaded, or does not answer; nothing changed.
        """
        self._look()
        async with self._changing:
            await self._stage(digest)
            self._refused = ("", 0.0)

    async def unstage(self, digest: str) -> None:
        """Close a release that was staged for a change that did not come."""
        async with self._changing:
            if (staged := self._staged) is not None and staged.digest == digest:
                self._staged = None
                await staged.retire()

    async def current(self) -> Spec:
        """What is live, whether it can answer or not."""
        return self._live.spec

    async def follow(self) -> None:
        """Look at the store now; what it says runs here afterwards.

        Raises:
            OrchestratorError: what it says cannot run; what ran before still does.
        """
        self._look()
        async with self._changing:
            await self._follow()

    async def learn(self, body: Labels) -> dict[str, Any]:
        """Learn from labels of recent answers; see `Learner.learn`.

        Raises:
            ConfigError: nothing is learned here.
            EnsembleError: a label is not one.
        """
        learner = self._learner
        if learner is None:
            raise ConfigError(
                "no weights are learned here", self._name, "set serving.feedback; it takes mixes of models"
            )
        found = await learner.learn(body)
        # Meanwhile another release may have taken over, of which this learner knows nothing.
        if learner is self._learner and learner.due:
            await finished(self._new_epoch(learner), self._learning)
        return {**found, **learner.plain()}

    async def _new_epoch(self, learner: Learner) -> None:
        try:
            await new_epoch(self._store, self._name, self._live, learner, self.stage)
            await self.follow()
        except OrchestratorError as error:  # the labels count all the same
            logger.error("%s: no weight epoch was made of labels: %s", self._name, error)

    async def state(self) -> dict[str, Any]:
        """What runs here, as JSON."""
        self._look()
        live, staged = self._live, self._staged
        return {
            "replica": this_replica(),
            "name": self._name,
            "live": live.digest,
            "weight_epoch": live.spec.weight_epoch,
            "version": live.model.version,
            "staged": None if staged is None else staged.digest,
            "canary": None if self._trial is None else self._trial.plain(),
            "canary_stopped": self._stopped,
            "feedback": None if self._learner is None else self._learner.plain(),
            "problem": self._problem,
        }

    async def close(self) -> None:
        """Stop following, and close what is loaded."""
        tasks = [task for task in (self._watch, *self._comparing, *self._learning) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in (self._live, self._staged, self._candidate):
            if running is not None:
                await running.retire()

    def _first(self) -> Running:
        """The live release; while it cannot be loaded, the newest before it that can."""
        failed: OrchestratorError | None = None
        for digest in releases.newest_first(self._store, self._name):
            try:
                return self._load(digest)
            except OrchestratorError as error:
                if failed is None:
                    failed = self._refuse(digest, error)
        raise failed or NotFoundError("the name has no release", self._name)

    def _refuse(self, digest: str, error: OrchestratorError) -> OrchestratorError:
        """Say that a release cannot run; it is not tried again for a while."""
        self._problem = f"release {digest[:12]} cannot run: {error}"
        self._refused = (digest, time.monotonic() + AGAIN_S)
        logger.error("%s: %s", self._name, self._problem)
        return error

    def _load(self, digest: str) -> Running:
        spec = releases.read(self._store, digest).spec
        try:
            return Running(digest, spec, self._open(spec))
        except OrchestratorError:
            raise
        except Exception as error:  # whatever a model or a compiler does, what runs goes on
            logger.exception("release %s of %s", digest[:12], self._name)
            raise ServingError("a release cannot be loaded", f"{type(error).__name__}: {error}") from error

    async def _stage(self, digest: str) -> Running:
        for known in (self._live, self._candidate, self._staged):
            if known is not None and known.digest == digest:
                return known
        found = await asyncio.to_thread(self._load, digest)
        try:
            await found.check()
        except BaseException:
            await found.retire()
            raise
        stale, self._staged = self._staged, found
        if stale is not None:
            await stale.retire()
        return found

    async def _follow(self) -> None:
        """First the canary: it does not wait for a live release that cannot run.

        But a canary that was promoted takes over before its end, which would close it. A promotion moves the
        live ref first, so that this reads it last.
        """
        position, settings, unread = await trials.newest(self._store, self._name)
        wanted = (await asyncio.to_thread(releases.live, self._store, self._name)).value
        if self._candidate is not None and self._candidate.digest == wanted:
            await self._take_over(self._candidate)
        if position.sequence != self._canary_seen:
            await self._follow_canary(position.sequence, settings)
        refused, until = self._refused
        if wanted == refused and time.monotonic() < until:
            return
        if wanted and wanted != self._live.digest:
            try:
                await self._take_over(await self._stage(wanted))
            except OrchestratorError as error:
                raise self._refuse(wanted, error) from error
        if unread not in ("", self._problem):
            logger.error("%s: %s", self._name, unread)
        self._problem = unread
        trial, candidate = self._trial, self._candidate
        if trial and candidate and candidate.model.encoded_by != self._live.model.encoded_by:
            self._judge(trial, trials.OTHERWISE)

    async def _follow_canary(self, sequence: int, settings: Canary | None) -> None:
        self._canary_seen = sequence
        if settings is None or settings.stopped or settings.release == self._live.digest:
            await self._try(None, None)
            return
        trial = Trial(settings, sequence)
        try:
            candidate = await self._stage(settings.release)
        except OrchestratorError as error:
            await self._try(None, None)
            await self._say_stopped(trial, f"it cannot run: {error}"[:300])
        else:
            self._stopped = ""
            await self._try(candidate, trial)

    async def _take_over(self, found: Running) -> None:
        old, self._live = self._live, found
        if self._staged is found:
            self._staged = None
        if self._candidate is found:
            self._candidate = self._trial = None
        if self._learner is None or not self._learner.made(found.spec):
            self._learner = learner_of(found.spec, self._feedback)
        self._renewed(found.spec)
        logger.warning("%s: release %s took over", self._name, found.digest[:12])
        await old.retire()

    async def _try(self, candidate: Running | None, trial: Trial | None) -> None:
        old, self._candidate, self._trial = self._candidate, candidate, trial
        if self._staged is candidate:
            self._staged = None
        if old is not None and old not in (candidate, self._live):
            await old.retire()

    def _compare(
        self, trial: Trial, other: Running, question: Question, answer: Answer, *, is_live: bool
    ) -> None:
        """Ask the other release too, in the background; the trial is told whether they agree."""
        if len(self._comparing) >= COMPARISONS:
            return

        async def compare() -> None:
            try:
                second = await other.ask(question)
            except OrchestratorError as error:
                if is_live:
                    self._failed(trial, question, error)
            else:
                trial.saw(trials.agreement(answer, second))
                self._judge(trial)

        task = asyncio.create_task(compare())
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    def _failed(self, trial: Trial, question: Question, error: OrchestratorError) -> None:
        if not trials.is_fault(error, question, self._fair_s):
            return
        logger.warning("the canary of %s failed: %s", self._name, error)
        trial.failed()
        self._judge(trial)

    def _judge(self, trial: Trial, why: str = "") -> None:
        why = why or trial.verdict
        if self._trial is trial and why:
            self._trial = None  # the live one answers from now on
            task = asyncio.create_task(self._stop(trial, why))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)

    async def _stop(self, trial: Trial, why: str) -> None:
        await self._say_stopped(trial, why)
        with suppress(OrchestratorError):
            await self.follow()

    async def _say_stopped(self, trial: Trial, why: str) -> None:
        """Say in the store that a canary is over, for the other processes and the next start."""
        self._stopped = why
        await trials.say_stopped(self._store, self._name, trial.settings, why, expect=trial.entry)

    def _look(self) -> None:
        """Keep a task that follows the store; it needs the loop that requests are answered in."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watching())

    async def _watching(self) -> None:
        while True:
            try:
                await self.follow()
            except OrchestratorError as error:
                if not self._problem:
                    self._problem = f"the store cannot be followed: {error}"
                    logger.error("%s: %s", self._name, self._problem)
            await asyncio.sleep(LOOK_S)
