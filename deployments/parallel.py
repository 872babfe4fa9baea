"""The parallel ensemble: all members are asked at once and their mean is the answer."""

from __future__ import annotations

from deployments.composed import Composed


class Parallel(Composed):
    """Takes as long as its slowest member, and serves as many requests as that one."""
