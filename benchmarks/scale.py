"""Many logical nodes on one machine: members, idle trials, memory of head and driver.

Each node is a raylet of its own with logical cores (`ray.cluster_utils.Cluster`), so what the head and the
driver do is real, and what nodes compute is not: the figures are of scheduling, never of work. docs/scale.md
models more nodes.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.output import Result, main
from benchmarks.search_study import SPACE, Study
from orchestrator.config.search import SearchSettings

CORES = 2
"""Logical cores of a node."""
SIZES = (4, 16, 32)
MEMBERS = 64
TRIALS = 1000
WORKERS = 16
"""Trials at once: each is a process, and the machine has few real cores."""
ROUNDS = 20
"""Calls of all members, for the median."""
STORE_BYTES = 80 * 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")


class Member:
    """What a member is to the scheduler."""

    def ready(self) -> str:
        """The node that it is on."""
        return str(ray.get_runtime_context().get_node_id())

    def answer(self, rows: bytes) -> int:
        """As little as a member can do."""
        return len(rows)


def measure(arguments: argparse.Namespace) -> Result:
    """Every size in a cluster of its own, the smallest first."""
    rows = [_size(size, arguments.trials, min(arguments.members, CORES * size)) for size in arguments.nodes]
    return [*rows, *_slopes(rows)], {}


def _size(nodes: int, trials: int, members: int) -> dict[str, Any]:
    with cluster_of(nodes) as (cluster, start_s):
        head = _pid_of("gcs_server", cluster)
        found: dict[str, Any] = {
            "part": "size",
            "nodes": nodes,
            "start_s_a_node": start_s / (nodes + 1),
            "head_bytes": resident_bytes(head),
            "driver_bytes": resident_bytes(os.getpid()),
        }
        found |= _members(members)
        found |= {"head_bytes_with_members": resident_bytes(head)}
        found |= idle_trials(trials, min(WORKERS, CORES * nodes))
        found |= {
            "head_bytes_at_end": resident_bytes(head),
            "driver_bytes_at_end": resident_bytes(os.getpid()),
            "load": os.getloadavg()[0],
        }
    return found


def _members(count: int) -> dict[str, Any]:
    """Place members, a core each, and call all of them."""
    remote: Any = ray.remote(Member)
    options = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    started = time.perf_counter()
    members = [remote.options(**options).remote() for _ in range(count)]
    asked_s = time.perf_counter() - started
    homes = ray.get([member.ready.remote() for member in members])
    placed_s = time.perf_counter() - started
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        ray.get([member.answer.remote(b"x" * 1024) for member in members])
        rounds.append(time.perf_counter() - begun)
    for member in members:
        ray.kill(member)
    return {
        "members": count,
        "members_asked_s": asked_s,
        "members_placed_s": placed_s,
        "members_on_nodes": len(set(homes)),
        "call_all_ms": statistics.median(rounds) * 1000,
    }


def idle_trials(count: int, at_once: int) -> dict[str, Any]:
    """A search whose trials do nothing, on the pool of actors: all of its time is lost to scheduling."""
    settings = SearchSettings.model_validate(
        {"trials": count, "batch": at_once, "sampler": "random", "space": SPACE}
    )
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), settings)
        started, cpu = time.perf_counter(), time.process_time()
        study.run("pool", 0.0)
        at = [seen for seen, _ in study.ended]
        cpu_s = time.process_time() - cpu
    assert len(at) == count
    quarter = count // 4
    return {
        "trials": count,
        "trials_at_once": at_once,
        "trials_start_s": at[0] - started,
        "trial_ms": (at[-1] - at[0]) / (count - 1) * 1000,
        "trial_ms_first_quarter": (at[quarter] - at[0]) / quarter * 1000,
        "trial_ms_last_quarter": (at[-1] - at[-quarter - 1]) / quarter * 1000,
        "driver_cpu_ms_a_trial": cpu_s / count * 1000,
    }


def _slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What one more node costs, from the smallest and the largest cluster."""
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    more = last["nodes"] - first["nodes"]
    keys = ("head_bytes", "driver_bytes", "call_all_ms", "trial_ms")
    return [{"part": "a node more", **{key: (last[key] - first[key]) / more for key in keys}}]


@contextmanager
def cluster_of(nodes: int) -> Iterator[tuple[Cluster, float]]:
    """A head without cores and so many nodes; this process is the driver."""
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    started = time.perf_counter()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(wait=False, num_cpus=CORES, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes(timeout=300)
        seconds = time.perf_counter() - started
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, seconds
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _pid_of(program: str, cluster: Cluster) -> int:
    """Of a process of the cluster's head."""
    assert cluster.head_node is not None
    (found,) = cluster.head_node.all_processes[program]
    return int(found.process.pid)


def resident_bytes(pid: int) -> int:
    """Bytes of memory that a process holds, by proc(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * PAGE


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES), help="sizes of the clusters")
    parser.add_argument("--trials", type=int, default=TRIALS, help="that do nothing")
    parser.add_argument("--members", type=int, default=MEMBERS, help="to place, where there are cores")


if __name__ == "__main__":
    main("scale", __doc__, measure, _more)
