"""A run sent to three nodes ends like an undisturbed one, whatever node is lost in whatever stage."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.store import Store
from tests.architecture.modules import ROOT
from tests.cluster.conftest import write
from tests.cluster.submitted import Submitted
from tests.pipeline.test_kill import copy_latencies
from tests.pipeline.tiny import Finished, free_port, refs
from tests.search.nodes import Nodes, nodes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(sys.platform != "linux", reason="the cluster's nodes are processes of this machine"),
]

MOMENTS = (
    ("train", ": epoch 1 of", "a"),
    ("search", "trial 1 of", "b"),
    ("ensemble", "(", "a"),
    ("serve", "starting", "b"),
)
"""Stage, part of a line of it, and the node that is killed then."""


@pytest.fixture(scope="module")
def dashboard(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nodes, str]]:
    """Three nodes; after the undisturbed run, which starts a Ray of its own."""
    assert finished.summary
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("ORCHESTRATOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("RAY_ADDRESS", raising=False)
        with nodes(port) as found:
            yield found, f"http://127.0.0.1:{port}"


def test_a_node_is_lost_in_each_stage(
    finished: Finished, dashboard: tuple[Nodes, str], tmp_path: Path
) -> None:
    cluster, address = dashboard
    store = Store(tmp_path / "store")
    copy_latencies(finished.store, store)
    file = write(tmp_path / "tiny.yaml", free_port())
    with Submitted(file, address, store.root) as run:
        for stage, text, name in MOMENTS:
            run.wait_for(stage, text)
            cluster.kill(getattr(cluster, name).node_id)
            cluster.restore()
        assert run.end() == 0, run.told
    assert refs(store) == refs(finished.store), run.told
    assert store.digests() == finished.store.digests()
    for digest in store.digests():
        store.verify(digest)
    assert run.told.count("small: epoch") <= finished.config.models["small"].training.epochs + 1


def test_two_runs_at_once_do_not_disturb_each_other(
    finished: Finished, dashboard: tuple[Nodes, str], tmp_path: Path
) -> None:
    """The same run under two names, and one of them once more while it is on its way."""
    _, address = dashboard
    store = Store(tmp_path / "store")
    copy_latencies(finished.store, store)
    files = []
    for name in ("first", "second"):
        files.append(write(tmp_path / f"{name}.yaml", free_port(), name))
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
    for name in ("first", "second"):
        found = {ref.removeprefix(f"{name}/"): store.ref(ref) for ref in store.refs(f"{name}/")}
        assert found.keys() == expected.keys()
        models = set(finished.config.models)
        assert {ref: found[ref] for ref in models} == {ref: expected[ref] for ref in models}
