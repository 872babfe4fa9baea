"""AutoGluon's combiner on the same members' predictions: a part of `benchmarks.ensembles`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ensembles_bench import TEAM, Bench, figures
from orchestrator.measure.metrics import softmax

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
NAME = "AutoGluon greedy weighted ensemble"


def peers(
    bench: Bench, validation: NDArray[Any], test: NDArray[Any], python: Path = PYTHON
) -> dict[str, dict[str, float]]:
    """Its greedy weighted ensemble on the members' probabilities; nothing where `make peers` was not run."""
    if not python.exists():
        print(f"left out: {NAME}: `make peers` was not run", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for part in ("validation", "test"):
            said = [softmax(bench.said[part][name]) for name in TEAM]
            np.save(place / f"{part}.npy", np.stack(said))
        np.save(place / "targets.npy", validation)
        command = [str(python), "-m", "benchmarks.peers.autogluon_greedy", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        answer = np.load(place / "answer.npy")
    return {NAME: figures(np.log(np.clip(answer, 1e-12, 1)), test)}
