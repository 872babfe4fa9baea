"""Replicas whose members do wrong when they are told to. For tests and benchmarks only.

Every process that holds members leaves a file `<pid>.pid`. A file `<member>.fault` holds what the next batch
of that member does; the first replica that finds the file takes it away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from deployments.ingress import Ingress
from deployments.member import Member
from orchestrator.config.ensemble import Member as Leaf
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble.tree import distinct
from orchestrator.runtime import execute
from orchestrator.store.store import Store

FOLDER = "SERVING_FAULTS"
"""Environment variable: folder of those files."""
KINDS = ("exception", "nan", "shape", "slow", "hang")
SLOW_S = 0.1
HANG_S = 3.0


class FaultyMember(Member):
    """A deployment of one member."""

    def __init__(self, store: str, member: Leaf, **options: Any) -> None:
        with _told([member]):
            super().__init__(store, member, **options)


class FaultyIngress(Ingress):
    """An ingress that may hold members."""

    def __init__(
        self,
        specs: Sequence[Spec],
        places: Sequence[Any],
        serving: ServingSettings,
        *more: Any,
        **options: Any,
    ) -> None:
        with _told([member for spec in specs for member in distinct(spec.tree)]):
            super().__init__(specs, places, serving, *more, **options)


@contextmanager
def _told(members: Collection[Leaf]) -> Iterator[None]:
    """Members that are loaded inside the block look for faults."""
    folder, sound = Path(os.environ[FOLDER]), execute.load
    names = {member.digest: member.name for member in members}

    def load(store: Store, digest: str, *args: Any, **options: Any) -> Any:
        (folder / f"{os.getpid()}.pid").touch()
        return _Faulty(sound(store, digest, *args, **options), folder / f"{names[digest]}.fault")

    with patch.object(execute, "load", load):
        yield


class _Faulty:
    def __init__(self, sound: Any, fault: Path) -> None:
        self._sound = sound
        self._fault = fault

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        kind = self._taken()
        if kind == "exception":
            raise RuntimeError("told to fail")
        if kind in ("slow", "hang"):
            time.sleep(SLOW_S if kind == "slow" else HANG_S)
        outputs: np.ndarray = self._sound(rows)
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
