"""What every test runs under, set before Ray or torch is imported."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Ray reads its auth mode once a process: modules with different modes could not share one.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_AUTH_TOKEN", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("ORCHESTRATOR_STORE", None)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
os.environ["TORCHAO_FORCE_SKIP_LOADING_SO_FILES"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

FINISHED_RUN = "tests/pipeline/test_run.py", "tests/pipeline/test_kill.py"
"""Modules that compare with one finished run: in one process it is made once."""


class _ByModule(LoadFileScheduling):  # type: ignore[misc]
    """A module's tests share a process, and so its Ray. (xdist's own groups do not work under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        module: str = super()._split_scope(nodeid)
        return FINISHED_RUN[0] if module in FINISHED_RUN else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `--dist loadfile`, ours."""
    return _ByModule(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What was imported and collected stays: collecting garbage no longer goes through it."""
    gc.collect()
    gc.freeze()
