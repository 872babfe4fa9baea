from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from deployments.composed import Composed
from deployments.exchange import Answer, Question
from orchestrator.config.ensemble import Cascade, Member, Parallel
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble.tree import predict
from orchestrator.errors import MemberFailedError
from tests.deployments.models import MIX, PARALLEL, A, B, spec
from tests.deployments.remotes import IN_PROCESS, INPUTS, Remote, Response, fail, run

SERVING = ServingSettings()


class Method:
    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self.function = function

    def remote(self, *args: Any) -> Response:
        return Response(self.function(*args))


class Handle:
    """A `DeploymentHandle` of a member."""

    def __init__(self, member: Member, ready: Exception | None = None, after_s: float = 0.0) -> None:
        self.predict = Method(Remote(member))
        self.ready = Method(lambda: fail(ready) if ready else asyncio.sleep(after_s))


def test_composed_answers_and_says_which_member_is_not_ready() -> None:
    handles: list[Any] = [Handle(A), Handle(B)]
    composed = Composed(spec(MIX), handles, SERVING)
    found = run(composed.predict(Question(INPUTS, 5)))
    assert isinstance(found, Answer)
    expected = predict(MIX, IN_PROCESS, INPUTS, "classification")
    np.testing.assert_array_equal(found.outputs["probabilities"], expected.probs)
    run(composed.ready())
    handles[1] = Handle(B, ActorDiedError())
    with pytest.raises(MemberFailedError, match="member b is not ready"):
        run(Composed(spec(MIX), handles, SERVING).ready())


@pytest.mark.parametrize("lost", [{"ready": ActorDiedError()}, {"after_s": 30.0}], ids=["dead", "hangs"])
def test_a_composed_ensemble_is_ready_without_the_members_that_its_quorum_does_without(
    lost: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.drive.READY_S", 0.3)
    without_b: list[Any] = [Handle(A), Handle(B, **lost)]
    nobody: list[Any] = [Handle(A, **lost), Handle(B, **lost)]
    one_of_two = Parallel(members=(A, B), quorum=1)
    nested = Parallel(members=(Cascade(stages=(B, A), thresholds=(0.8,)), A), quorum=1)
    run(Composed(spec(one_of_two), without_b, SERVING).ready())
    run(Composed(spec(nested), list(reversed(without_b)), SERVING).ready())
    required = Parallel(members=(A, B.model_copy(update={"required": True})), quorum=1)
    for tree, handles in ((required, without_b), (one_of_two, nobody), (PARALLEL, without_b)):
        with pytest.raises(MemberFailedError, match="not ready"):
            run(Composed(spec(tree), handles, SERVING).ready())
