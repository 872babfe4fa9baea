"""What is said of a variant that cannot be made; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.exceptions import RayTaskError

from orchestrator.config.measure import Metric
from orchestrator.config.variant import VariantEntry
from orchestrator.errors import CompressionError
from orchestrator.pipeline import compressing
from orchestrator.pipeline.compressing import VariantJob
from orchestrator.pipeline.context import Run
from orchestrator.store.store import Store


def made(tmp_path: Path) -> str:
    entry = VariantEntry.model_validate({"parent": "teacher", "plan": [{"kind": "bf16"}]})
    job = VariantJob(
        name="small",
        parent="ab" * 32,
        plan=entry.plan,
        store=str(tmp_path / "store"),
        data_folder=str(tmp_path),
        data_digest="cd",
        metric=Metric(),
        seed=0,
        threads=1,
    )
    run = SimpleNamespace(
        store=Store(tmp_path / "store"), progress=lambda *_: None, cluster=lambda: None, config=None
    )
    return compressing._made(cast(Run, run), job, entry)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (CompressionError("no layer is left", "mlp"), "no layer is left: mlp"),
        (RuntimeError("in your loss:\nsizes do not match"), "RuntimeError: sizes do not match"),
    ],
)
def test_an_error_of_a_step_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, said: str
) -> None:
    def fails(*_: object) -> str:
        raise RayTaskError("make_variant", "Traceback ...", cause, "worker", 1, "127.0.0.1")

    monkeypatch.setattr(compressing, "fitting", lambda *_: 1)
    monkeypatch.setattr(compressing, "_followed", fails)
    with pytest.raises(CompressionError) as caught:
        made(tmp_path)
    assert str(caught.value) == f"variant small: {said}"
    assert caught.value.__suppress_context__


def test_an_interrupt_leaves_no_mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    killed: list[object] = []
    monkeypatch.setattr(compressing, "fitting", lambda *_: 1)
    monkeypatch.setattr(compressing, "open_mailbox", lambda: "mailbox")
    task = SimpleNamespace(remote=lambda *_: "call")
    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=lambda **_: task))
    monkeypatch.setattr(ray, "wait", interrupted)
    monkeypatch.setattr(ray, "kill", killed.append)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path)
    assert killed == ["mailbox"]
