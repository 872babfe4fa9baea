"""Seconds from a process that has imported torch and Ray to the first answer of a fused ensemble."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.serving_models import Models
from benchmarks.serving_servers import ROOT

# What a worker of Ray Serve does: Ray is imported when it starts, the deployment's class by its first task.
_REPLICA = """
import asyncio, sys, time
import numpy, torch
from ray import serve
started = time.perf_counter()
from deployments.exchange import Question
from deployments.fused import Fused
from orchestrator.config.ensemble import Spec
store, spec = sys.argv[1:]
fused = Fused(Spec.model_validate_json(spec), store, allow=(), compiled=True, max_queued_rows=64)
asyncio.run(fused.predict(Question(numpy.zeros((1, 3, 32, 32), numpy.uint8), 30.0)))
assert not fused.fallbacks
print("SECONDS", time.perf_counter() - started)
"""


def cold_start_s(models: Models, repeats: int) -> float:
    """The median for the three networks, whose compiled form is in the store."""
    spec = models.specs["trio"].model_dump_json()
    command = [sys.executable, "-c", _REPLICA, models.store.location, spec]
    taken = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"the replica did not start: {done.stderr.strip()[-2000:]}")
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
        taken.append(float(line.split()[1]))
    return statistics.median(taken)
