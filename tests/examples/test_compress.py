"""The example of compressing from Python runs as it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_example_runs_and_keeps_its_promise(tmp_path: Path) -> None:
    environment = {**os.environ, "ORCHESTRATOR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "compress.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "100% of the products" in done.stdout
    assert "gate" in done.stdout
    assert "REFUSED" not in done.stdout
    assert (tmp_path / "digits-small.pt2").stat().st_size > 0
