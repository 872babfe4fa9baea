"""Trials go where their labels and their memory say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import fitting
from orchestrator.config.search import SearchSettings
from orchestrator.errors import ResourceError
from tests.search.faulty import notes
from tests.search.nodes import CORES, GIB, Nodes, nodes
from tests.search.study_driver import Study, settings_of

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

DRIVERS = ("pool", "tune")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


def most_at_once(folder: Path) -> int:
    running = most = 0
    for line in sorted(notes(folder), key=lambda line: line.at):
        running += 1 if line.what == "begin" else -1
        most = max(most, running)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_trials_run_on_nodes_of_their_labels(cluster: Nodes, tmp_path: Path, driver: str) -> None:
    study = Study(tmp_path / "study", settings_of(6, driver=driver, labels={"zone": "in(b, c)"}))
    assert len(study.run()) == 6
    assert {line.node for line in notes(study.folder)} == {cluster.b.node_id}


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_node_takes_no_more_than_its_memory(cluster: Nodes, tmp_path: Path, driver: str) -> None:
    study = Study(tmp_path / "study", settings_of(6, driver=driver, memory_bytes=3 * GIB))
    assert len(study.run()) == 6
    assert {line.node for line in notes(study.folder)} == {cluster.a.node_id}
    assert most_at_once(study.folder) == 1


@pytest.mark.usefixtures("cluster")
def test_how_many_fit_is_counted_by_node() -> None:
    def count(cpus: int = 1, **more: object) -> int:
        return fitting("a search trial", cpus, 0, "search", **more)  # type: ignore[arg-type]

    assert count() == 2 * CORES
    assert count(cpus=2) == 2
    assert count(labels={"zone": "a"}) == count(labels={"zone": "!b"}, memory_bytes=GIB) == CORES
    assert count(labels={"zone": "!in(b, c)"}, memory_bytes=3 * GIB) == 1
    assert count(memory_bytes=GIB // 2) == 4
    # Both nodes together have three cores to spare, and no node has them.
    with pytest.raises(ResourceError, match=r"than any node has: 3 of 2 cores.*lower search\.cpus"):
        count(cpus=3)
    with pytest.raises(ResourceError, match=r"8,589,934,592 of 4,294,967,296 bytes.*search\.memory_bytes"):
        count(memory_bytes=8 * GIB)
    with pytest.raises(ResourceError, match=r"no node has the labels.*zone: c, size: big.*ray start"):
        count(labels={"zone": "c", "size": "big"})


@pytest.mark.parametrize("labels", [{"zone": "in()"}, {"zone": "!!a"}, {"a b": "c"}, {"zone": ""}])
def test_what_is_no_label_is_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="labels"):
        SearchSettings(labels=labels)
