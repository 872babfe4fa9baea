"""Peak memory of one call, from the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held at once for one call, beyond what was held before it.

    Weights are not in it, nor what a kernel takes from elsewhere. The call is made twice; the first one
    may allocate what stays.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU:
            held += event.nbytes()
            most = max(most, held)
    return most
