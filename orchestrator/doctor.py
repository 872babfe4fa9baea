"""Findings about this machine and a running cluster, each with what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.errors import NotFoundError, OrchestratorError
from orchestrator.measure.machine import machine
from orchestrator.pipeline.context import store_root
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.runtime.int8 import reduce_range
from orchestrator.store.opening import is_remote, local_root, open_blobs, split_location
from orchestrator.store.store import Store
from orchestrator.upload import LIMIT_BYTES, upload_of

GIB = 2**30
LEAST_MEMORY = 4 * GIB
LEAST_DISK = 5 * GIB
LEAST_SHARED = 1 * GIB
PORTS = {6379: "Ray's head", 8000: "serving", 8265: "Ray's dashboard", 52365: "Ray's job agent"}
HAPROXY_PORTS = {8404: "HAProxy statistics", 9101: "HAProxy metrics"}
PROC = Path("/proc")
SERVE_HAPROXY = "haproxy-serve"
"""Folder of the configuration that Ray Serve starts its HAProxy with."""
PACKAGES = ("ray", "torch", "torchao", "torch-pruning", "optuna", "pyarrow", "safetensors", "pydantic")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    level: Literal["ok", "warning", "error"]
    text: str
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def examine(store: str | None = None) -> list[Finding]:
    """Look at everything; a check that cannot look says so instead of failing."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _compiler,
        _cores_and_memory,
        _number_types,
        lambda: _space(
            Path("/dev/shm"), LEAST_SHARED, "shared memory", "give the container --shm-size=2g or more"
        ),
        lambda: _store(store),
        _ports,
        _auth,
        _tls,
        _upload,
        _cluster,
        _haproxy,
    )
    return [finding for check in checks for finding in check()]


def render(findings: list[Finding]) -> None:
    """Print the findings as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "finding", "what to do"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "error": "[red]fix[/]"}
    for finding in findings:
        table.add_row(marks[finding.level], *map(escape, (finding.topic, finding.text, finding.fix)))
    Console().print(table)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding(
        "python", "ok" if good else "error", version, "" if good else "install Python 3.11 or newer"
    )


def _packages() -> Iterator[Finding]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", "ok", ", ".join(found))
    if missing:
        yield Finding("packages", "error", f"missing: {', '.join(missing)}", "run 'make install'")


def _compiler() -> Iterator[Finding]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        yield Finding("compiler", "ok", f"{compiler} (compiled execution)")
    else:
        yield Finding(
            "compiler",
            "warning",
            "no C++ compiler: the execution 'aoti' is not available",
            "install g++, or leave aoti out of search.executions",
        )


def _cores_and_memory() -> Iterator[Finding]:
    facts = machine()
    cores = os.cpu_count() or 1
    yield Finding(
        "cores",
        "ok" if cores >= 2 else "warning",
        f"{cores} x {facts.get('cpu', 'unknown')}",
        "" if cores >= 2 else "two or more cores let training and Ray run side by side",
    )
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    good = total >= LEAST_MEMORY
    yield Finding(
        "memory", "ok" if good else "warning", f"{total / GIB:.1f} GiB", "" if good else "4 GiB is the least"
    )


def _number_types() -> Iterator[Finding]:
    """What bfloat16 and int8 are worth on this CPU."""
    isa = machine()["isa"]
    if has_bf16_kernels():
        yield Finding("bfloat16", "ok", f"has kernels ({', '.join(isa)})")
    else:
        yield Finding(
            "bfloat16",
            "warning",
            f"no kernels on this CPU ({', '.join(isa) or 'unknown'}): many times slower than fp32",
            "set training.precision: fp32, and leave bf16 out of search.space",
        )
    if reduce_range():
        yield Finding(
            "int8",
            "warning",
            "no VNNI: activations keep to 7 bits, and artifacts with 8 bits are refused here",
            "set reduce_range: true where artifacts are made for this CPU",
        )
    else:
        yield Finding("int8", "ok", "has VNNI")


def _space(place: Path, least: int, topic: str, fix: str) -> Iterator[Finding]:
    if not place.exists():
        yield Finding(topic, "warning", f"{place} does not exist", fix)
        return
    free = shutil.disk_usage(place).free
    good = free >= least
    yield Finding(
        topic, "ok" if good else "warning", f"{free / GIB:.1f} GiB free at {place}", "" if good else fix
    )


def _store(store: str | None) -> Iterator[Finding]:
    root = store_root(store)
    try:
        if is_remote(root):
            open_blobs(split_location(root)[0])  # asks no server
            yield Finding("store", "ok", root)
            return
        place = local_root(root)
        with suppress(NotFoundError):  # a run makes one
            Store(root, create=False)
    except OrchestratorError as error:
        yield Finding("store", "error", ": ".join(filter(None, (error.what, error.value))), error.fix)
        return
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        yield Finding("store", "error", f"{nearest} is not writable", "pass --store with a folder of yours")
    yield from _space(nearest, LEAST_DISK, "disk", "free some space, or pass --store on another disk")


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ports() -> Iterator[Finding]:
    taken = [f"{port} ({use})" for port, use in PORTS.items() if _listening(port)]
    if taken:
        yield Finding(
            "ports",
            "warning",
            f"in use: {', '.join(taken)}",
            "fine if that is your own Ray or server; else choose others (orchestrator serve --port)",
        )
    else:
        yield Finding("ports", "ok", f"free: {', '.join(map(str, PORTS))}")


def _auth() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if mode == "disabled":
        yield Finding("ray auth", "warning", "RAY_AUTH_MODE=disabled", "use it on an isolated network only")
    elif mode is None and token.exists():
        yield Finding(
            "ray auth",
            "warning",
            f"{token} exists: 'ray start --head' here will ask every node and client for it",
            "set RAY_AUTH_MODE explicitly on all nodes",
        )
    else:
        where = f"RAY_AUTH_MODE={mode}, token from {_token_source(token)}" if mode else ""
        yield Finding("ray auth", "ok", where or "not set; runs on this machine use a token of their own")
    if token.exists() and token.stat().st_mode & 0o077:
        yield Finding("ray auth", "warning", f"{token} can be read by others", f"chmod 600 {token}")


def _token_source(file: Path) -> str:
    """Where Ray finds the token, in its own order."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return str(file) if file.exists() else "nowhere: 'ray get-auth-token --generate' makes one"


def _tls() -> Iterator[Finding]:
    """Whether Ray's processes talk in the clear."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
        yield Finding("ray tls", "ok", "off: Ray's processes talk in the clear (SECURITY.md)")
        return
    names = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
    missing = [name for name in names if not Path(os.environ.get(name, "-")).is_file()]
    if missing:
        text = f"RAY_USE_TLS is set, but no file is named by {', '.join(missing)}"
        yield Finding("ray tls", "error", text, "name certificate, key and authority on every node")
    else:
        yield Finding("ray tls", "ok", "on")


def _upload() -> Iterator[Finding]:
    """What `ray job submit --working-dir .` would send from here."""
    if not Path(".rayignore").is_file():
        return
    sent = upload_of(Path.cwd())
    text = f"{len(sent.files)} files, {sent.bytes / 2**20:.1f} MiB would be sent with a job from this folder"
    good = sent.bytes <= LIMIT_BYTES
    largest = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sent.largest())
    yield Finding(
        "upload", "ok" if good else "warning", text, "" if good else f"add to .rayignore; largest: {largest}"
    )


def _cluster() -> Iterator[Finding]:
    """Resources of a running cluster, asked in another process: joining one changes this process."""
    address = os.environ.get("RAY_ADDRESS", "auto")
    question = (
        f"import json, ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False);"
        "print(json.dumps(ray.cluster_resources()))"
    )
    if address == "auto" and not _listening(6379):
        yield Finding("cluster", "ok", "none is running; runs start their own on this machine")
        return
    try:
        answer = subprocess.run(
            [sys.executable, "-c", question], capture_output=True, text=True, timeout=30, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        yield Finding(
            "cluster", "error", f"no answer from {address} ({type(error).__name__})", "see 'ray status'"
        )
        return
    yield Finding("cluster", "ok", answer.stdout.strip().splitlines()[-1])


def _haproxy() -> Iterator[Finding]:
    """A HAProxy whose Ray is gone keeps its ports. One that the system runs is not ours to name."""
    commands = {pid: _command(pid) for pid in os.listdir("/proc") if pid.isdigit()} if PROC.exists() else {}
    proxies = [pid for pid, command in commands.items() if SERVE_HAPROXY in command]
    if proxies and not any("raylet" in command for command in commands.values()):
        yield Finding(
            "haproxy", "error", f"orphaned: process {', '.join(proxies)}", f"kill {' '.join(proxies)}"
        )
    open_to_all = [f"{port} ({use})" for port, use in HAPROXY_PORTS.items() if _listening(port)]
    if open_to_all:
        yield Finding(
            "haproxy",
            "warning",
            f"listening, as Ray sets it up on every interface: {', '.join(open_to_all)}",
            "close these ports in the firewall, or let Ray begin orchestrator-haproxy: it keeps to loopback",
        )
    if not proxies and not open_to_all:
        yield Finding("haproxy", "ok", "none is running")


def _command(pid: str) -> str:
    """The whole command line."""
    try:
        return (PROC / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
