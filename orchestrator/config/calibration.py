"""Calibration, missing members and prediction sets: what is asked for, and what was fitted.

The same class holds both: a number that is None is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from orchestrator.config.base import Settings, long_form

Numbers = tuple[float, ...]


class TemperatureScaling(Settings):
    """Scores divided by one temperature (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

    kind: Literal["temperature"] = "temperature"
    temperature: float | None = Field(None, gt=0)

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.temperature is not None


class VectorScaling(Settings):
    """A factor and a shift for the score of each class (Guo et al. 2017, section 4.2)."""

    kind: Literal["vector"] = "vector"
    factors: Numbers | None = None
    shifts: Numbers | None = None

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.factors is not None and self.shifts is not None


class IsotonicScaling(Settings):
    """One rising function for the probabilities of all classes, then normalized; the top class stays the top.

    (Zhang, Kailkhura, Han 2020, https://arxiv.org/abs/2003.07329, IRM.)
    """

    kind: Literal["isotonic"] = "isotonic"
    knots: tuple[tuple[float, float], ...] | None = None
    """Probability before and after, both rising strictly; straight lines between, from (0, 0) to (1, 1)."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.knots is not None


class AutoScaling(Settings):
    """The kind of least cross-validated negative log-likelihood, which takes its place once fitted."""

    kind: Literal["auto"] = "auto"

    @property
    def fitted(self) -> bool:
        """Never: it is a question."""
        return False


Scaling = TemperatureScaling | VectorScaling | IsotonicScaling | AutoScaling
Calibration = Annotated[Annotated[Scaling, Field(discriminator="kind")], BeforeValidator(long_form)]
"""How a node's answer is calibrated after its members were combined; a plain name is that kind, unfitted."""


class Trend(Settings):
    """What is lost without several members, from what is lost without each: factor x the sum of effects."""

    effects: Numbers
    """One a member: the change when that one alone is missing; 0 where it must not be."""
    factor: float
    spread: float = Field(ge=0)
    """Root mean square error on the sets that it was fitted on."""


class Survivors(Settings):
    """Weights and temperature of a node whose other members answer."""

    without: tuple[int, ...]
    """Positions of the missing members, rising."""
    weights: Numbers | None
    """Of the members that answered, in their order; None: they count alike."""
    temperature: float = Field(1.0, gt=0)
    """The combined scores are divided by it before the node's own calibration."""


class Expected(Settings):
    """The metric on the rows that the ensemble was fitted on, with its 95 % interval."""

    value: float
    low: float
    high: float


class ExpectedWithout(Expected):
    """The same without some members."""

    without: tuple[int, ...]
    """Positions among the tree's distinct members, rising."""


class Expectations(Settings):
    """What a tree's answers are worth, complete and without some members."""

    metric: str
    complete: Expected | None
    """None: not measured, since weights or thresholds were set by hand or learned; then there are no `sets`
    and no `trend` either."""
    sets: tuple[ExpectedWithout, ...] = ()
    """Every set that leaves an answer, of a tree of few members; of a nested tree of many each one alone."""
    trend: Trend | None = None
    """Of a tree of many that stand side by side."""
    alone: tuple[ExpectedWithout, ...] = Field((), exclude_if=lambda value: not value)
    """With a fallback: each distinct member without all others, the best first."""


class Record(Settings):
    """How a member answers when it is sound: measured where the tree was fitted, for its guard."""

    outputs: int
    """Columns."""
    low: float
    high: float
    """Least and largest raw output."""
    scales: Numbers = ()
    """Regression: deviation of each output."""
    opposed: Numbers
    """How much two other members agree against it, for each pair of the tree's other distinct members in
    order: an upper bound; 1 where the three never met."""


class PredictionSets(Settings):
    """Sets of classes that hold the true one with a chosen probability, by split conformal prediction."""

    method: Literal["lac", "aps", "raps"] = "aps"
    """`lac`: the smallest sets on average; `aps`: sets that grow with the row's difficulty; `raps`: such
    with a penalty on large ones."""
    coverage: float = Field(0.9, gt=0, lt=1)
    penalty: float = Field(0.01, ge=0)
    """`raps`: added for each class beyond `free`."""
    free: int = Field(5, ge=0)
    """`raps`: size up to which a set pays nothing."""
    threshold: float | None = None
    """Fitted: the largest score of a class in the set."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.threshold is not None


class Reject(Settings):
    """Rows are marked as rejected that the ensemble is less sure of than a threshold."""

    by: Literal["confidence", "margin", "entropy", "agreement"] = "confidence"
    """How sure an answer is, from 0 to 1: as a cascade's `criterion`; `agreement` is the share of members, by
    weight, that say what the ensemble says."""
    keep: float = Field(0.95, gt=0, lt=1)
    """Least share of the validation rows that is not rejected."""
    recall: float | None = Field(None, gt=0, lt=1)
    """Instead of `keep`: least share of the validation rows of the run's `elsewhere` that is rejected."""
    threshold: float | None = None
    """Fitted when not given: a row is rejected that is less sure."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.threshold is not None


class Band(Settings):
    """Intervals around regression values that hold the true one with a chosen probability."""

    coverage: float = Field(0.9, gt=0, lt=1)
    widths: Numbers | None = None
    """Fitted: half width of each target's interval, in its unit."""

    @property
    def fitted(self) -> bool:
        """Whether it can be applied."""
        return self.widths is not None


def on_simplex(weights: Sequence[float], members: int) -> None:
    """Refuse weights that are not one for each member, >= 0 and of sum 1."""
    if len(weights) != members:
        raise ValueError(f"{members} members need as many weights, got {len(weights)}")
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights must be >= 0 and sum to 1, got {weights} (sum {sum(weights):.6g})")
