"""Really smaller or really faster? A variant that is neither is marked so, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.measure.latency import Latency

MASKED = 0.05
"""Share of zeros from which a model of full size is called masked."""
_WEIGHT_ONLY = {"int8_weight_only", "int4_weight_only"}


@dataclass(frozen=True)
class Gate:
    """What a variant gains over its own fp32 baseline."""

    faster: bool
    """At some batch size, by more than the noise: the interval of the ratio lies above 1."""
    smaller: bool
    reason: str
    """What it gains, and where it is slower beyond the noise; or why it gains nothing."""

    @property
    def passes(self) -> bool:
        """Whether it gains anything."""
        return self.faster or self.smaller


def gate(facts: Mapping[str, Any], baseline: Mapping[str, Any], latencies: Mapping[int, Latency]) -> Gate:
    """Judge a variant.

    Args:
        facts: `bytes`, `macs`, `zeros`, `int8`, `fp8` and `decided`, as `audit` gives them.
        baseline: the same of the model that it came from.
        latencies: by batch size, each measured interleaved with that model in eager fp32.
    """
    best = max(latencies.items(), key=lambda found: found[1].ratio_ci[0], default=None)
    faster = best is not None and best[1].ratio_ci[0] > 1
    smaller = facts["bytes"] < baseline["bytes"]
    said = []
    if best is not None and faster:
        said.append(_times(*best))
    if smaller:
        said.append(f"{facts['bytes'] / baseline['bytes']:.0%} of the bytes")
    if said:
        if smaller and not faster and is_masked(facts, baseline):
            said.append("masked: its zeros are left out of the file, and multiplied as before")
        if slower := [found for found in latencies.items() if found[1].ratio_ci[1] < 1]:
            said.append(f"slower: {_times(*min(slower, key=lambda found: found[1].ratio))}")
        return Gate(faster, smaller, ", ".join(said))
    slowest = "" if best is None else f" (ratio {best[1].ratio:.2f} at batch {best[0]})"
    return Gate(False, False, f"neither faster{slowest} nor smaller: {_why(facts, baseline)}")


def _times(batch: int, latency: Latency) -> str:
    low, high = latency.ratio_ci
    return f"{latency.ratio:.2f} times as fast at batch {batch} ({low:.2f} to {high:.2f})"


def is_masked(facts: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Whether weights are zero in a model that computes them all; zeros that rounding makes do not count."""
    kinds = {step["kind"] for step in facts.get("decided", ())}
    rounded = facts["int8"] is not None or facts["fp8"] is not None or kinds & _WEIGHT_ONLY
    return facts["zeros"] > MASKED and facts["macs"] >= baseline["macs"] and not rounded


def _why(facts: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    if is_masked(facts, baseline):
        return (
            f"masked only: {facts['zeros']:.0%} of the weights are zero, and dense kernels multiply them too"
        )
    int8 = facts["int8"]
    if int8 is not None and int8["share"] < 1:
        return f"only {int8['share']:.0%} of its products run in int8 kernels"
    if facts["macs"] >= baseline["macs"]:
        return "it computes as much as before"
    return "its layers are too small for fewer operations to show"
