"""Starting or joining Ray, always with the auth mode stated."""

from __future__ import annotations

import io
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from orchestrator.errors import ClusterError, ResourceError, first_line

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job."""
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20

# Ray's own defaults cost seconds per report (2 s polls) and flood the log of a small run.
_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers are niced by 15 otherwise, and starve beside anything else that runs.
    "RAY_worker_niceness": "0",
    "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
}
SERVE = {
    # A replica's code in its main loop, and calls between replicas by gRPC without the object store.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Its default limit is 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**29),
    # Our ingress listens itself (`deployments/http/listener.py`); replicas open no ports for HAProxy.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}
"""Variables with which a Ray of our own starts."""


def inside_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return JOB_VARIABLE in os.environ


def _join_address() -> str | None:
    """Address of the cluster to join: a job's own, or `RAY_ADDRESS`; None means start one here."""
    return os.environ.get("RAY_ADDRESS") or ("auto" if inside_job() else None)


@contextmanager
def connected(*, cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block: the cluster of `RAY_ADDRESS` or of the job, else one of our own.

    Within the block SIGTERM does what the program's own handler says, or else raises KeyboardInterrupt. Our
    own cluster listens on loopback, asks for a token that only this process tree knows (no file is written),
    and ends with the block. A cluster that was joined is left running.

    Args:
        cpus: cores of our own cluster; all of the machine's when not given.

    Raises:
        ClusterError: the cluster cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address, on_sigterm = _join_address(), signal.getsignal(signal.SIGTERM)
    # What Ray itself prints goes to standard error: standard output belongs to the command's answer.
    with redirect_stdout(_RayOutput()):
        try:
            if address is None:
                _start_local(cpus)
            else:
                _join(address)
            with _sigterm_as_before(on_sigterm):
                yield
        finally:
            ray.shutdown()


@contextmanager
def _sigterm_as_before(handler: signal._HANDLER) -> Iterator[None]:
    """Within it SIGTERM is the program's, or ends like Ctrl-C. What `ray.init` sets prints a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = handler if callable(handler) else signal.default_int_handler
    before = signal.signal(signal.SIGTERM, own)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _RayOutput(io.TextIOBase):
    """Standard error, without what a normal end of Ray Serve always prints."""

    _HARMLESS = "ServeController.graceful_shutdown failed"

    def __init__(self) -> None:
        self._dropped = False

    def write(self, text: str) -> int:
        end_of_dropped = self._dropped and text == "\n"
        self._dropped = self._HARMLESS in text
        return len(text) if self._dropped or end_of_dropped else sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within it these variables are set too, but for those that the user has set."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts within it listens on 127.0.0.1 alone.

    Ray 2.60 puts the machine's own address in place of 127.0.0.1, and then all of its servers listen on every
    interface, unless this switch, meant for systems without clusters, is off.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _start_local(cpus: int | None) -> None:
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray turns token mode on by itself, and would write a token file that a later `ray start` trips over.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with _environment(SERVE), _on_loopback():
            ray.init(
                address="local",
                num_cpus=cpus or os.cpu_count(),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=_object_store_bytes(),
                logging_level=logging.ERROR,
                log_to_driver=bool(os.environ.get("ORCHESTRATOR_WORKER_LOGS")),
                runtime_env={"env_vars": worker_environment()},
            )
        address = ray.util.get_node_ip_address()
        if address != "127.0.0.1":
            raise ValueError(f"it would listen on every interface, at {address}")
    except Exception as error:  # Ray raises bare Exceptions when a part of it does not come up
        raise ClusterError(
            "Ray could not start on this machine", first_line(error), "run 'orchestrator doctor'"
        ) from error


def _join(address: str) -> None:
    options: dict[str, Any] = {} if inside_job() else {"runtime_env": {"env_vars": worker_environment()}}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (RuntimeError, OSError, ValueError, RayError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}",
            first_line(error),
            "start one with 'ray start --head', or unset RAY_ADDRESS to run on this machine alone",
        ) from error


def worker_environment() -> dict[str, str]:
    """Environment of Ray's workers: the driver's import path, and one thread until a worker sets its own."""
    here = os.pathsep.join(dict.fromkeys(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])))
    return {"PYTHONPATH": here, "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1", **_train_environment()}


def _train_environment() -> Mapping[str, str]:
    return {name: value for name, value in _QUIET.items() if name.startswith(("RAY_TRAIN", "TUNE"))}


def _object_store_bytes() -> int:
    """Half of the free shared memory, at most 512 MiB: rows are memory-mapped files, not Ray objects."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else LOCAL_OBJECT_STORE_BYTES
    return max(80 * 2**20, min(LOCAL_OBJECT_STORE_BYTES, free // 2))


def alive_nodes() -> int:
    """Nodes of the cluster that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def cores_in_use() -> tuple[float, float] | None:
    """(used, total) cores of the cluster by Ray's books; None where there is none or it does not answer."""
    if not ray.is_initialized():
        return None
    try:
        total = float(ray.cluster_resources().get("CPU", 0.0))
        return total - float(ray.available_resources().get("CPU", 0.0)), total
    except RayError:
        return None


def fitting(
    what: str,
    cpus: int,
    gpus: float,
    keys: str,
    *,
    memory_bytes: int = 0,
    labels: Mapping[str, str] | None = None,
) -> int:
    """How many tasks of this size the whole cluster holds at once, each on one node that offers `labels`.

    Raises:
        ResourceError: not even one: `what` needs too much, `keys` of the run file say how much.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    labelled = [node["Resources"] for node in nodes if offers(node["Labels"], labels or {})]
    if not labelled:
        wanted = ", ".join(f"{name}: {value}" for name, value in (labels or {}).items())
        raise ResourceError(
            f"no node has the labels that {what} asks for",
            wanted,
            f"change {keys}.labels, or start such a node with 'ray start --labels'",
        )
    needs = {"CPU": float(cpus), "GPU": gpus, "memory": float(memory_bytes)}
    count = sum(_held(node, needs) for node in labelled)
    if count < 1:
        # Of a head without cores the memory is of no use.
        working = [node for node in labelled if node.get("CPU", 0.0) > 0] or labelled
        cores, cards, memory = (max(node.get(name, 0.0) for node in working) for name in needs)
        raise ResourceError(
            f"{what} needs more than any node has",
            f"{cpus} of {cores:g} cores, {gpus:g} of {cards:g} GPUs, {memory_bytes:,} of {memory:,.0f} bytes",
            f"lower {keys}.cpus, {keys}.gpus or {keys}.memory_bytes",
        )
    return count


def _held(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How often the needs fit into a node's resources."""
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items() if amount > 0)


def offers(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node's labels match Ray's selectors: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
    for name, selector in wanted.items():
        plain = selector.removeprefix("!")
        listed = plain.startswith("in(") and plain.endswith(")")
        values = [value.strip() for value in plain[3:-1].split(",")] if listed else [plain]
        if (labels.get(name) in values) == selector.startswith("!"):
            return False
    return True
