"""What a trial brought, as the store keeps it. Imports nothing heavy."""

from __future__ import annotations

from orchestrator.config.base import Settings
from orchestrator.config.measure import Execution


class Outcome(Settings):
    """A trial's result as the store keeps it."""

    digest: str = ""
    execution: Execution = "eager"
    """That it runs and was scored in."""
    metric: float = 0.0
    drop: float = 0.0
    drop_bound: float = 0.0
    changed: float | None = None
    """Share of validation rows that get another class than the parent's; None for a regression."""
    class_drop: float | None = None
    """Drop of the recall of the class that loses most."""
    bytes: int = 0
    failure: str = ""
    """The sentence of a failure that would come again; empty when the trial succeeded."""
    untrained: bool = False
    """What failed is the training, so it fails for all that share it."""
    cost: float = 0.0
    """Operations of a row (multiply-accumulates) of what is trained; 0 when nothing was."""
    curve: tuple[float, ...] = ()
    """The metric after each epoch that its last process trained."""
    epochs: tuple[int, ...] = ()
    """Their numbers, from 1: a trial whose process died goes on after its last epoch."""
    stopped: bool = False
    """Early: `metric` is that of the last epoch, and there is no variant."""
