"""A run sent to three nodes ends like an undisturbed one, whatever node is lost in whatever stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.pipelines import losing_nodes, three_nodes, two_at_once
from tests.pipeline.tiny import Finished
from tests.search.nodes import Nodes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(sys.platform != "linux", reason="the cluster's nodes are processes of this machine"),
]


@pytest.fixture(scope="module")
def dashboard(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nodes, str]]:
    """Three nodes; after the undisturbed run, which starts a Ray of its own."""
    assert finished.summary
    with three_nodes(tmp_path_factory.mktemp("cache")) as found:
        yield found


def test_a_node_is_lost_in_each_stage(
    finished: Finished, dashboard: tuple[Nodes, str], tmp_path: Path
) -> None:
    cluster, address = dashboard
    found = losing_nodes(finished, cluster, address, tmp_path)
    assert found.same, found.told
    assert found.repeated <= 1, found.told


def test_two_runs_at_once_do_not_disturb_each_other(
    finished: Finished, dashboard: tuple[Nodes, str], tmp_path: Path
) -> None:
    _, address = dashboard
    found = two_at_once(finished, address, tmp_path)
    assert found.same, found.told
