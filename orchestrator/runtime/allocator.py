"""What a network frees stays with its process: the next call finds its memory there."""

from __future__ import annotations

import ctypes
import os
import sys

# From <malloc.h>; mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
MAPPED_BYTES = 32 * 2**20
"""Larger blocks are mapped and given back one by one; glibc takes no higher bound."""
KEPT_BYTES = 256 * 2**20
"""Of freed memory a process keeps at most about so much."""
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, up to `KEPT_BYTES`, for the whole process.

    By default it gives freed memory back to the system whenever a few MB lie at the end of the heap, and it
    is chance whether they lie there. A network's activations are freed and wanted again in each call, and
    every page of them then faults: the same call takes once or twice its time from one process to the next
    (decision 244).

    For processes of our own, which do nothing else: trainers, trials, benches and replicas. Whoever has set
    one of glibc's own variables (mallopt(3)) is left alone.

    Returns:
        Whether the allocator was told; False without glibc.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_CHOICE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
