"""Seconds from a process that has imported torch and Ray to the first answer of a served member."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.serving_models import BATCH, Models
from benchmarks.serving_servers import ROOT
from orchestrator.config.ensemble import Member
from orchestrator.ensemble.tree import distinct

# What a worker of Ray Serve does: Ray is imported when it starts, the deployment's class by its first task.
_REPLICA = """
import asyncio, sys, time
import numpy, torch
from ray import serve
started = time.perf_counter()
from deployments.member import Member
from orchestrator.config.ensemble import Member as Settings
store, settings, batch = sys.argv[1:]
member = Member(
    store, Settings.model_validate_json(settings), batch=int(batch), threads=1, max_queued_rows=64
)
asyncio.run(member.predict(numpy.zeros((1, 3, 32, 32), numpy.uint8)))
print("SECONDS", time.perf_counter() - started)
"""


def cold_start_s(models: Models, repeats: int) -> float:
    """The median for a compiled member whose compiled form is in the store."""
    member: Member = distinct(models.specs["trio"].tree)[0]
    command = [sys.executable, "-c", _REPLICA, str(models.store.root), member.model_dump_json(), str(BATCH)]
    taken = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
        taken.append(float(line.split()[1]))
    return statistics.median(taken)
