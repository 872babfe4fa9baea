"""One undisturbed run for all tests that compare with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.pipeline.run import execute
from orchestrator.store.store import Store
from tests.pipeline.tiny import Finished, config, free_port


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The tiny run, executed in this process on a Ray of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        for name in ("RAY_ADDRESS", "ORCHESTRATOR_STORE"):
            patch.delenv(name, raising=False)
        run = config(free_port())
        summary = execute(run, store=str(folder / "store"))
        yield Finished(run, Store(folder / "store"), summary)
