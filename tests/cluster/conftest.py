"""One undisturbed run for the tests that compare with it: the tiny pipeline with less to compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.run import execute
from orchestrator.store.store import Store
from tests.pipeline import tiny
from tests.pipeline.tiny import Finished, free_port


def values(port: int, name: str = "tiny") -> dict[str, Any]:
    """Two models, two trials, one ensemble; one model has epochs enough to be disturbed in."""
    found = tiny.values(port)
    del found["variants"]
    found["name"] = name
    found["models"]["small"]["training"]["epochs"] = 8
    found["search"] |= {"trials": 2, "batch": 2, "executions": ["eager"]}
    found["ensembles"] = {"mix": {"kind": "weighted_mix", "members": ["chosen", "small"]}}
    return found


def write(path: Path, port: int, name: str = "tiny") -> Path:
    """The run file."""
    path.write_text(yaml.safe_dump(values(port, name), sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The run, executed in this process on a Ray of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        for name in ("RAY_ADDRESS", "ORCHESTRATOR_STORE"):
            patch.delenv(name, raising=False)
        run = validate(RunConfig, values(free_port()), "tiny.yaml")
        summary = execute(run, store=str(folder / "store"))
        yield Finished(run, Store(folder / "store"), summary)
