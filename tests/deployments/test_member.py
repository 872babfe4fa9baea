from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from deployments import member as served
from deployments.member import Member
from orchestrator.config import ensemble as tree
from orchestrator.errors import CorruptArtifactError, MemberFailedError, NotFoundError
from orchestrator.runtime import execute
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, IMAGES, SMALL_CNN, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def load(store: Path, settings: tree.Member) -> Member:
    return Member(str(store), settings, batch=8, threads=1, max_queued_rows=100)


def test_concurrent_callers_get_their_own_rows(store: Store) -> None:
    settings = put(store, "cnn", SMALL_CNN, DIGITS, 0)
    member = load(store.root, settings)
    expected = execute.load(store, settings.digest, "eager")(IMAGES)

    async def test() -> list[np.ndarray]:
        await member.ready()
        parts = [IMAGES[start:end] for start, end in ((0, 1), (1, 6), (6, 18), (18, 24))]
        return await asyncio.gather(*(member.predict(part) for part in parts))

    np.testing.assert_allclose(np.concatenate(asyncio.run(test())), expected, atol=1e-5)


def test_a_model_that_fails_is_a_failed_member(store: Store) -> None:
    settings = put(store, "cnn", SMALL_CNN, DIGITS, 0)
    member = load(store.root, settings)

    async def test() -> tuple[np.ndarray | BaseException, ...]:
        wrong = IMAGES[:, :, :3]
        return await asyncio.gather(member.predict(IMAGES), member.predict(wrong), return_exceptions=True)

    right, failed = asyncio.run(test())
    assert isinstance(right, np.ndarray)
    assert isinstance(failed, Exception)
    assert "the rows do not fit the model" in str(failed)


def test_health(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = put(store, "cnn", SMALL_CNN, DIGITS, 0)
    member = load(store.root, settings)
    member.check_health()
    monkeypatch.setattr(served, "STUCK_S", -1.0)
    with pytest.raises(MemberFailedError, match="still running"):
        member.check_health()


def test_a_missing_store_artifact_or_byte_is_said_at_the_start(store: Store, tmp_path: Path) -> None:
    settings = put(store, "cnn", SMALL_CNN, DIGITS, 0)
    with pytest.raises(NotFoundError):
        load(tmp_path / "none", settings)
    with pytest.raises(NotFoundError):
        load(store.root, settings.model_copy(update={"digest": "0" * 64}))
    (weights,) = (store.root / "artifacts" / settings.digest).glob("*.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CorruptArtifactError, match=r"weights\.safetensors"):
        load(store.root, settings)
