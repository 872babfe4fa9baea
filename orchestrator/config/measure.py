"""What is measured, and how: metrics and latency."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.imports import ImportPath
from orchestrator.config.signature import Task

Execution = Literal["eager", "lowered", "aoti", "openvino"]
"""How an artifact runs: PyTorch eager, int8 lowered to x86 kernels, by AOTInductor, or by OpenVINO."""

BuiltInMetric = Literal[
    "accuracy",
    "macro_f1",
    "micro_f1",
    "mean_average_precision",
    "subset_accuracy",
    "auroc",
    "recall_at_precision",
    "nll",
    "mae",
    "rmse",
]


TASK_METRICS: dict[Task, tuple[BuiltInMetric, ...]] = {
    "classification": ("accuracy", "macro_f1", "auroc", "recall_at_precision", "nll"),
    "multilabel": ("macro_f1", "micro_f1", "mean_average_precision", "subset_accuracy", "nll"),
    "regression": ("rmse", "mae"),
}
"""What each task can be measured by; the first is its own, used where the run file names none."""


class Metric(Settings):
    """The objective of every choice, and what the promise is about."""

    name: BuiltInMetric | ImportPath = "accuracy"
    """Built-in name, or `fn(outputs [N, K], targets) -> float`, where larger is better; targets are [N], or
    [N, K] of several labels, or [N, T] of a regression."""
    precision: float = Field(0.9, gt=0, lt=1)
    """`recall_at_precision` only: the precision to reach."""

    @property
    def label(self) -> str:
        """The name without a module path."""
        return self.name.rpartition(":")[2]


class LatencySettings(Settings):
    """One latency is the baseline's reference over a ratio, a median over blocks in turns with it."""

    batch: int = Field(32, ge=1)
    threads: int = Field(1, ge=1)
    blocks: int = Field(15, ge=5)
    """Fewest repeated blocks; the interval is the bootstrap interval of their median."""
    most_blocks: int = Field(60, ge=5)
    """Where the measurement ends although `tolerance` is not reached."""
    tolerance: float = Field(0.02, gt=0)
    """The measurement goes on until the 95 % interval of the ratio reaches no further than this share of it
    to either side. At 0.02 ten measurements lie within about 3 % of each other."""
    block_ms: float = Field(20.0, gt=0)
    """Length of one block; the call is repeated to fill it."""

    @model_validator(mode="after")
    def _most_are_not_fewer(self) -> Self:
        if self.most_blocks < self.blocks:
            raise ValueError(f"most_blocks ({self.most_blocks}) must be at least blocks ({self.blocks})")
        return self


class Target(LatencySettings):
    """What variants are measured for: a kind of machine, and how they are called there."""

    isa: Literal["native", "avx2"] = "native"
    """Instructions that kernels may use: all of the machine's, or AVX2 alone as a stand-in for a small
    device."""
    resource: str | None = None
    """Custom Ray resource that quiet nodes of the target's kind offer; a measurement holds one unit of it
    alone. Without it the machine of the search is measured, between batches of trials."""
