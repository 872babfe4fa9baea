"""The weighted mix: all members are asked at once and their weighted mean is the answer."""

from __future__ import annotations

from deployments.composed import Composed


class WeightedMix(Composed):
    """Answers carry the weight epoch, since weights are what changes between two specs of one tree."""
