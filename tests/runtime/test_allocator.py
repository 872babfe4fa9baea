"""Freed memory stays with a process that asks for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Blocks of 1 MiB that are wanted again and again, as activations are; page faults of the later turns.
FAULTS = """
import resource
import torch
from orchestrator.runtime.allocator import keep_freed_memory

told = keep_freed_memory()

def turn():
    blocks = [torch.ones(2**18) for _ in range(16)]
    del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(5):
    turn()
before = faults()
for _ in range(50):
    turn()
print(told, faults() - before)
"""


def run(**environment: str) -> tuple[str, int]:
    child = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=child | environment
    )
    told, faults = found.stdout.split()
    return told, int(faults)


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")


def test_what_is_freed_is_there_for_the_next_call() -> None:
    told, faults = run()
    assert told == "True"
    assert faults < 100


def test_an_allocator_that_the_user_has_set_is_left_alone() -> None:
    told, faults = run(MALLOC_TRIM_THRESHOLD_="131072")  # glibc's own value, which it no longer adapts
    assert told == "False"
    assert faults > 10_000, "then nothing would be gained, and this module could go"
