"""A small run on three nodes: undisturbed, with nodes lost, twice at once. For tests and benchmarks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.run import execute
from orchestrator.store.store import Store
from tests.architecture.modules import ROOT
from tests.cluster.submitted import Submitted
from tests.pipeline import tiny
from tests.pipeline.test_kill import copy_latencies
from tests.pipeline.tiny import Finished, free_port, refs
from tests.search.nodes import Nodes, nodes

MOMENTS = (
    ("train", ": epoch 1 of", "a"),
    ("search", "trial 1 of", "b"),
    ("ensemble", "(", "a"),
    ("serve", "starting", "b"),
)
"""Stage, part of a line of it, and the node that is killed then."""


@dataclass(frozen=True)
class Disturbed:
    """What came of a run, beside an undisturbed one."""

    same: bool
    """Every name and every artifact is that of the undisturbed run, and whole."""
    repeated: int
    """Epochs of the disturbed training that were trained twice."""
    told: str


def values(port: int, name: str = "tiny") -> dict[str, Any]:
    """Two models, two trials, one ensemble; one model has epochs enough, and long enough, to be disturbed in.

    Ray Train takes up checkpoints every 0.2 s, so of shorter epochs a lost node costs more than one.
    """
    found = tiny.values(port)
    del found["variants"]
    found["name"] = name
    found["models"]["small"] = {
        "model": {"factory": "mlp", "kwargs": {"widths": [1024, 1024]}},
        "training": {"epochs": 6, "batch_size": 1, "lr": 1e-3},
    }
    found["search"] |= {"trials": 2, "batch": 2, "executions": ["eager"]}
    found["ensembles"] = {"mix": {"kind": "weighted_mix", "members": ["chosen", "small"]}}
    return found


def write(path: Path, port: int, name: str = "tiny") -> Path:
    """The run file."""
    path.write_text(yaml.safe_dump(values(port, name), sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def undisturbed(folder: Path) -> Iterator[Finished]:
    """The run, executed in this process on a Ray of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        for name in ("RAY_ADDRESS", "ORCHESTRATOR_STORE"):
            patch.delenv(name, raising=False)
        run = validate(RunConfig, values(free_port()), "tiny.yaml")
        summary = execute(run, store=str(folder / "store"))
        yield Finished(run, Store(folder / "store"), summary)


@contextmanager
def three_nodes(cache: Path) -> Iterator[tuple[Nodes, str]]:
    """The nodes, and the address of their dashboard."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("ORCHESTRATOR_CACHE", str(cache))
        patch.delenv("RAY_ADDRESS", raising=False)
        with nodes(port) as found:
            yield found, f"http://127.0.0.1:{port}"


def losing_nodes(finished: Finished, cluster: Nodes, address: str, folder: Path) -> Disturbed:
    """The run with a node killed in each stage.

    Raises:
        AssertionError: it failed, or never came to a stage; holds what it told.
    """
    store = Store(folder / "store")
    copy_latencies(finished.store, store)
    file = write(folder / "tiny.yaml", free_port())
    with Submitted(file, address, store.root) as run:
        for stage, text, name in MOMENTS:
            run.wait_for(stage, text)
            cluster.kill(getattr(cluster, name).node_id)
            cluster.restore()
        assert run.end() == 0, run.told
    for digest in store.digests():
        store.verify(digest)
    same = refs(store) == refs(finished.store) and store.digests() == finished.store.digests()
    epochs = finished.config.models["small"].training.epochs
    return Disturbed(same, run.told.count("small: epoch") - epochs, run.told)


def two_at_once(finished: Finished, address: str, folder: Path) -> Disturbed:
    """The same run under two names, and one of them once more while it is on its way.

    Returns:
        Whether the models are those of the run alone; nothing is counted.

    Raises:
        AssertionError: one failed, or the second call started a job of its own.
    """
    store = Store(folder / "store")
    copy_latencies(finished.store, store)
    names = ("first", "second")
    files = [write(folder / f"{name}.yaml", free_port(), name) for name in names]
    with (
        Submitted(files[0], address, store.root) as first,
        Submitted(files[1], address, store.root) as second,
    ):
        first.wait_for("data", "reading")  # whichever is first trains for both
        with Submitted(files[0], address, store.root) as again:
            assert again.end() == 0, again.told
            assert "no second job is started" in again.told
        assert (first.end(), second.end()) == (0, 0), first.told + second.told
    expected = {ref.removeprefix("tiny/"): digest for ref, digest in refs(finished.store).items()}
    models, same = set(finished.config.models), True
    for name in names:
        found = {ref.removeprefix(f"{name}/"): store.ref(ref) for ref in store.refs(f"{name}/")}
        same &= found.keys() == expected.keys()
        same &= all(found.get(ref) == expected[ref] for ref in models)
    return Disturbed(same, 0, first.told + second.told)
