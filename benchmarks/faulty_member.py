"""A member's replica that does wrong when it is told to. For tests and benchmarks only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from deployments.member import Member
from orchestrator.config.ensemble import Member as Leaf
from orchestrator.runtime.execute import Executable

FOLDER = "SERVING_FAULTS"
"""Environment variable: folder in which the replicas leave their process ids and look for faults."""
KINDS = ("exception", "nan", "shape", "slow", "hang")
SLOW_S = 0.1
HANG_S = 3.0


class FaultyMember(Member):
    """`Member`, whose next batch fails in the way that a file `<name>.fault` says; the first replica that
    finds the file takes it away."""

    def __init__(self, store: str, member: Leaf, **options: Any) -> None:
        super().__init__(store, member, **options)
        folder = Path(os.environ[FOLDER])
        self._executable: Any = _Faulty(self._executable, folder / f"{member.name}.fault")
        (folder / f"{member.name}-{os.getpid()}.pid").touch()


class _Faulty:
    def __init__(self, sound: Executable, fault: Path) -> None:
        self._sound = sound
        self._fault = fault

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        kind = self._taken()
        if kind == "exception":
            raise RuntimeError("told to fail")
        if kind in ("slow", "hang"):
            time.sleep(SLOW_S if kind == "slow" else HANG_S)
        outputs = self._sound(rows)
        if kind == "nan":
            return np.full_like(outputs, np.nan)
        return outputs[:, :-1] if kind == "shape" else outputs

    def _taken(self) -> str | None:
        mine = self._fault.with_suffix(f".{os.getpid()}")
        try:
            self._fault.rename(mine)
        except FileNotFoundError:
            return None
        return mine.read_text()
