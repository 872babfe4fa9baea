"""Rows for tests."""

from __future__ import annotations

from orchestrator.config.space import Config
from orchestrator.search.objectives import PARENT, TrialRow
from tests.search.spaces import whole


def evaluated(number: int, config: Config | None = None, *, drop: float = 0.0, size: int = 100) -> TrialRow:
    """A row that lacks its latency; the parent has metric 0.9 and the allowed drop is 0.02."""
    config = config or whole("bf16")
    return TrialRow(
        number=number,
        name=f"v{number}",
        execution="aoti",
        config=config,
        digest=f"{number:064x}",
        metric=0.9 - drop,
        drop=drop,
        drop_bound=drop + 0.01,
        violations={"max_drop": drop - 0.02},
        bytes=size,
    )


def measured(number: int, *, drop: float = 0.0, latency: float = 1.0, size: int = 100) -> TrialRow:
    """A finished row; the parent takes 4 ms, intervals are 5 % wide on each side."""
    speedup = 4.0 / latency
    return evaluated(number, drop=drop, size=size).measured(
        latency, (latency * 0.95, latency * 1.05), speedup, (speedup * 0.95, speedup * 1.05)
    )


def parent() -> TrialRow:
    """The parent's row: metric 0.9, 4 ms, 100 bytes."""
    row = TrialRow(PARENT, "teacher", "eager", digest="f" * 64, metric=0.9, bytes=100)
    return row.measured(4.0, (3.8, 4.2), 1.0, (1.0, 1.0))
