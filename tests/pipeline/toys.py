"""Run files and models small enough to run in a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from orchestrator.models.build import build
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_MLP

KWARGS = "{widths: [16]}"
"""Of `SMALL_MLP`."""


def write(path: Path, **changed: Any) -> Path:
    """A run file without search, ensembles and serving."""
    values = {
        "name": "toy",
        "data": {"kind": "embedded", "limit": 300},
        "models": {"small": {"model": {"factory": "mlp"}, "training": {"epochs": 1}}},
        "serving": None,
        "latency": {"blocks": 5, "block_ms": 1},
        **changed,
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def weights(path: Path, seed: int = 0) -> Path:
    """Weights for `orchestrator import ... --factory mlp --data digits`."""
    save_file(build(SMALL_MLP, DIGITS, seed=seed).state_dict(), path)
    return path


def flip(path: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@contextmanager
def locked(store: Store, name: str) -> Iterator[None]:
    """Another thread holds the lock for the length of the block."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock(name):
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        leave.set()
        thread.join()
