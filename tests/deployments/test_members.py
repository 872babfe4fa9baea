"""Members that releases bring, as applications of their own; Serve's calls are stood in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from deployments.members import ADDED, Added
from orchestrator.config.serving import AppSettings
from tests.deployments.models import A, B, spec

SETTINGS = AppSettings(store="/nowhere", refs=("toys/mix",))


class Controller:
    """What Serve runs, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.applications: dict[str, Any] = {}
        self.stuck = False
        monkeypatch.setattr(serve, "status", lambda: self)
        monkeypatch.setattr(serve, "run_many", self._run)
        monkeypatch.setattr(serve, "delete", self._delete)
        monkeypatch.setattr(serve, "get_app_handle", lambda name: name)

    def _run(self, targets: list[Any], **_options: Any) -> None:
        self.applications |= {one.name: SimpleNamespace(status="RUNNING") for one in targets}

    def _delete(self, name: str) -> None:
        if self.stuck:
            raise TimeoutError(name)
        del self.applications[name]


def test_what_one_ensemble_frees_is_not_what_another_one_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Controller(monkeypatch)
    one, other = (Added(SETTINGS, "app", owner) for owner in ("weighted_mix-one", "weighted_mix-other"))
    names = [str(added.need(A, spec())) for added in (one, other)]
    assert list(running.applications) == names
    one.free([A])
    assert list(running.applications) == names[1:]
    other.free([A])
    assert not running.applications


def test_it_is_kept_while_a_loaded_release_needs_it_and_named_after_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = Controller(monkeypatch)
    added = Added(SETTINGS, "app", "parallel-odd-member-name")
    assert added.need(A, spec()) == added.need(A, spec())
    assert added.need(B, spec()) != added.need(A, spec())
    assert {name.partition(ADDED)[0] for name in running.applications} == {"app"}
    added.free([A, A, B])
    assert len(running.applications) == 1
    added.free([A])
    assert not running.applications


def test_what_serve_does_not_remove_in_time_is_only_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = Controller(monkeypatch)
    added = Added(SETTINGS, "app", "parallel-small")
    added.need(A, spec())
    running.stuck = True
    added.free([A])
    assert "could not be removed" in caplog.text
