"""Member failure as a contract: an answer is right, or degraded and says so, or it is an error.

Over `drive`, which gives one answer, stands what is known from the requests before: members whose breaker is
open are not asked, nor are those that the guard ejected, where the tree can do without them; and early exits
that do not keep their promise are switched off. All of it holds for any placement: a call may be a Serve
handle or a function in this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np

from deployments.drive import PATIENCE, drive
from deployments.exchange import Answer, Question, fair_s
from deployments.member_call import Call, MemberCall
from deployments.outputs import answer
from deployments.watchman import watchman_of
from orchestrator.config.ensemble import Cascade, Member, Spec
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble import exit_audit, quorum
from orchestrator.ensemble.exit_audit import ExitAudit
from orchestrator.ensemble.sight import beside, nothing_told
from orchestrator.ensemble.tree import Prediction, distinct
from orchestrator.errors import OrchestratorError

AUDITS = 4
"""Most audits at once; beyond that, rows are not drawn."""

logger = logging.getLogger(__name__)


class Contract:
    """Answers one ensemble's questions.

    Args:
        spec: the fitted ensemble.
        calls: asks each distinct member.
        serving: the policies.
        alone: members of which there is one replica at hand, whatever `serving` says.
        clock: seconds, rising.
        seed: of the draw of rows that are audited.
        saw: told each prediction, and the seconds of its rounds of asks.
    """

    def __init__(
        self,
        spec: Spec,
        calls: Mapping[Member, Call],
        serving: ServingSettings,
        *,
        alone: Collection[Member] = (),
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
        saw: Callable[[Prediction, Sequence[float]], None] = lambda _prediction, _rounds: None,
    ) -> None:
        self._spec = spec
        self._members = distinct(spec.tree)
        self._calls = {
            member: MemberCall(
                calls[member],
                _problem(member, spec.signature.outputs),
                serving.options(member.name),
                replicas=1 if member in alone else serving.replicas_of(member.name),
                clock=clock,
            )
            for member in self._members
        }
        self._watchman = watchman_of(spec, serving.guard, clock)
        self._promise = exit_audit.promise(spec.tree) if serving.audit else None
        self._share = serving.audit
        self._fair_s = fair_s(serving.deadline_s)
        self._audit = ExitAudit()
        self._rng = np.random.default_rng(seed)
        self._audits = 0
        self._saw = saw
        self._background = set[asyncio.Task[None]]()

    async def answer(self, question: Question) -> Answer:
        """Answer the rows within the time that is left.

        Raises:
            DeadlineError: the members took longer.
            QuorumError: too few members gave a sound answer; those that did not are named.
        """
        spec, without = self.spec, self._left_out()
        fair = question.timeout_s >= self._fair_s
        if fair:
            self._try_again(question, without)
        rounds: list[float] = []
        prediction = await drive(
            spec,
            self._calls,
            question.rows,
            question.timeout_s,
            without=without,
            late=self._late if fair else lambda _: None,
            rounds=rounds.append,
            told=None if question.told is None else self._tell(question.told),
        )
        self._saw(prediction, rounds)
        if self._watchman is not None:
            self._watchman.saw(prediction)
        if self._promise is not None and not self._audit.broken and not prediction.degraded.any():
            self._draw(question, prediction)
        wanted, early_exit = question.outputs, not self._audit.broken
        return answer(prediction, spec, wanted, ejected=self._ejected(), early_exit=early_exit)

    def _tell(self, told: Callable[[Answer], None]) -> Callable[[Prediction], None]:
        return lambda stage: told(answer(stage, self.spec))

    def health(self) -> dict[str, Any]:
        """What is known about the members and early exits, as plain values."""
        ejected = self._ejected()
        members = {
            member.name: {"breaker": call.state, "ejected": member.name in ejected}
            for member, call in self._calls.items()
        }
        return {
            "members": members,
            "early_exit": not self._audit.broken,
            "audited_rows": self._audit.rows,
            "audited_loss": self._audit.loss / max(self._audit.rows, 1),
        }

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def spec(self) -> Spec:
        """What is answered by: without early exits once they broke their promise."""
        tree = self._spec.tree
        if not self._audit.broken or not isinstance(tree, Cascade):
            return self._spec
        return self._spec.model_copy(update={"tree": exit_audit.whole(tree)})

    def _ejected(self) -> tuple[str, ...]:
        if self._watchman is None:
            return ()
        return tuple(self._members[position].name for position in self._watchman.ejected)

    def _left_out(self) -> dict[Member, str]:
        """Whom not to ask, and why. Only the tree's answers without them make that possible."""
        found: dict[Member, str] = {}
        if self._watchman is not None:
            self._watchman.renew()
            for position in self._watchman.ejected:
                self._leave_out(self._members[position], "ejected for wrong answers", found)
        for member, call in self._calls.items():
            if call.state != "closed":
                self._leave_out(member, "not asked, since it failed before", found)
        return found

    def _leave_out(self, member: Member, reason: str, found: dict[Member, str]) -> None:
        if member not in found and quorum.answers_without(self._spec.tree, [*found, member]):
            found[member] = reason

    def _try_again(self, question: Question, without: Mapping[Member, str]) -> None:
        """Ask in the background whether members work again that are left out for failures."""
        for member in without:
            call = self._calls[member]
            if call.to_try():
                rows = question.rows
                if member.sees:
                    seen = nothing_told(len(rows), len(member.sees), self._spec.signature.outputs)
                    rows = beside(rows, seen)
                self._start(call.attempt(rows, PATIENCE * question.timeout_s))

    def _late(self, member: Member) -> None:
        self._calls[member].was_late()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _draw(self, question: Question, prediction: Prediction) -> None:
        """Audit some of the rows; those that did not leave early lose nothing."""
        if self._audits >= AUDITS:
            return
        drawn = np.flatnonzero(self._rng.random(len(question.rows)) < self._share)
        assert isinstance(self._spec.tree, Cascade)
        last = len(self._spec.tree.stages) - 1
        early = drawn[prediction.stages[drawn] < last]
        self._observe(np.zeros(len(drawn) - len(early)))
        if len(early) and prediction.probs is not None:
            self._audits += 1
            self._start(self._audit_rows(question.rows[early], prediction.probs[early], question.timeout_s))

    async def _audit_rows(self, rows: np.ndarray, early: np.ndarray, timeout_s: float) -> None:
        assert isinstance(self._spec.tree, Cascade)
        spec = self._spec.model_copy(update={"tree": exit_audit.whole(self._spec.tree)})
        try:
            complete = await drive(spec, self._calls, rows, timeout_s, without=self._left_out())
        except OrchestratorError:
            return  # nothing is learnt; the members' breakers know
        finally:
            self._audits -= 1
        if complete.probs is not None and not complete.degraded.any():
            self._observe(exit_audit.losses(early, complete.probs))

    def _observe(self, losses: np.ndarray) -> None:
        if self._promise is None or self._audit.broken:
            return
        self._audit = exit_audit.observed(self._audit, losses.tolist(), self._promise)
        if self._audit.broken:
            logger.warning(
                "early exits of %s lose more than the promised %g of the rows: switched off",
                self._spec.name,
                self._promise.max_loss,
            )


def _problem(member: Member, width: int) -> Callable[[np.ndarray, int], str | None]:
    return lambda output, rows: quorum.problem(output, rows, width, member.record)
