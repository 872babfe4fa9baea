"""What somebody who helps from afar needs, in one archive without secrets."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.doctor import examine
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.files import write_whole
from orchestrator.measure.machine import machine
from orchestrator.pipeline.context import runs_folder
from orchestrator.redact import REMOVED, is_secret, known_secrets, redact

RUNS = 5
"""The newest runs whose figures are taken."""
LOGS = 24
LOG_BYTES = 256 * 2**10
"""Of the end of each log."""
VARIABLES = (
    "RAY_",
    "ORCHESTRATOR_",
    "OMP_",
    "CUDA_VISIBLE",
    "TORCH",
    "AWS_",
    "MLFLOW_",
    "KUBERNETES_",
    "PYTHON",
)
"""Beginnings of the names of variables that are taken."""
RAY_LOGS = Path("/tmp/ray/session_latest/logs")
_LOG_NAMES = (
    *("gcs_server.*", "raylet.*", "monitor.*", "dashboard*.log", "job-driver-*.log", "serve/*.log"),
    *("train/*.log", "python-core-driver-*.log"),
)
_RUN_NAMES = ("summary.json", "study.json", "training-study.json", "choose.json", "training/*.json")
"""Files that runs write. What else lies beside a store need not be a run, so no other names are taken."""


def bundle(
    target: Path, *, store: str | None = None, config: Path | None = None, ray_logs: Path | None = None
) -> dict[str, Any]:
    """Write a `tar.gz` with versions, findings of `doctor`, figures of runs, logs and settings.

    Every text goes through `orchestrator.redact`. Weights, rows and predictions are not taken.

    Args:
        target: file to write.
        store: whose runs.
        config: a run file to take along.
        ray_logs: folder of Ray's logs; those of the newest session on this machine when not given.

    Returns:
        `file`, `bytes`, and `entries`: the names within.

    Raises:
        ConfigError: the target cannot be written, or the run file cannot be read.
    """
    secrets = known_secrets()
    entries: dict[str, str] = {}
    for name, text in _texts(store, config, ray_logs or RAY_LOGS):
        entries[name] = redact(text, secrets)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, text in entries.items():
            _add(archive, f"support/{name}", text.encode())
    try:
        write_whole(target, written.getvalue())
    except OSError as error:
        raise ConfigError("the archive cannot be written", target, str(error)) from error
    return {"file": str(target), "bytes": target.stat().st_size, "entries": list(entries)}


def _texts(store: str | None, config: Path | None, logs: Path) -> Iterator[tuple[str, str]]:
    yield "versions.json", _json(_versions())
    yield "machine.json", _json(machine())
    yield "doctor.json", _json([finding.plain() for finding in examine(store)])
    yield "environment.json", _json(_environment())
    if config is not None:
        try:
            yield f"config/{config.name}", config.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError("the run file cannot be read", config, str(error)) from error
    yield from _runs(store)
    yield from _logs(logs)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, default=str) + "\n"


def _versions() -> dict[str, Any]:
    packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return {
        "orchestrator": __version__,
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]))),
    }


def _environment() -> dict[str, str]:
    taken = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {name: REMOVED if is_secret(name) else value for name, value in taken.items()}


def _runs(store: str | None) -> Iterator[tuple[str, str]]:
    """Figures of the newest runs."""
    try:
        home = runs_folder(store)
    except OrchestratorError as error:
        yield "runs/unreadable.txt", str(error)
        return
    folders = [path for path in home.iterdir() if path.is_dir()] if home.is_dir() else []
    kept = [path for path in folders if any(_matches(path, _RUN_NAMES))]
    for folder in sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True)[:RUNS]:
        for path in _matches(folder, _RUN_NAMES):
            yield f"runs/{folder.name}/{path.relative_to(folder)}", _end_of(path)


def _logs(folder: Path) -> Iterator[tuple[str, str]]:
    """The ends of Ray's newest logs."""
    found = sorted(_matches(folder, _LOG_NAMES), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[:LOGS]:
        yield f"logs/{path.relative_to(folder)}", _end_of(path)


def _matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _end_of(path: Path) -> str:
    """The last bytes as text, from a line's beginning on: half a secret would not be recognised."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            data = file.read()
    except OSError as error:
        return f"cannot be read: {error}\n"
    text = data.decode(errors="replace")
    return text if size <= LOG_BYTES else text.partition("\n")[2]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
    archive.addfile(entry, io.BytesIO(data))
