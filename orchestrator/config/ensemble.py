"""Ensembles as trees. The same classes are the run file's nodes and, once fitted, the served spec's.

In a run file a member may be a plain name: a model of the run, `chosen` (the variant that keeps the
promise), `fastest` (the fastest point of the front), or another ensemble of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.calibration import (
    Numbers,
    Survivors,
    Trend,
    on_simplex,
)
from orchestrator.config.guarantee import Certificate, Guarantee
from orchestrator.config.member import Child as Child
from orchestrator.config.member import Combined as Combined
from orchestrator.config.member import Later as Later
from orchestrator.config.member import Member as Member
from orchestrator.config.member import member_of_name
from orchestrator.config.signature import Signature, Task


class Pooled(Combined):
    """What ensembles have whose members all answer every row."""

    below: ClassVar[str | None] = "members"
    members: tuple[Node, ...] = Field(min_length=2)
    survivors: tuple[Survivors, ...] = ()
    """Filled in when it is fitted with a quorum: for each set of missing members of few."""
    trend: Trend | None = None
    """And of many: of the logarithm of the temperature."""


Rule = Literal["mean", "logits", "vote", "weighted_vote", "median", "trimmed_mean", "maximum"]
"""How the members' answers become one: `orchestrator.ensemble.combine.pool`."""
TASK_RULES: dict[Task, tuple[Rule, ...]] = {
    "classification": get_args(Rule),
    "multilabel": ("mean", "logits", "median", "trimmed_mean", "maximum"),
    "regression": ("mean", "median", "trimmed_mean"),
}
Method = Literal["likelihood", "squared_error", "greedy", "per_class", "gate"]
"""How the weights of a mix are fitted: `orchestrator.ensemble.mix`."""
POOL_METHODS: tuple[Method, ...] = ("likelihood", "greedy")
"""Those that can weigh log-probabilities."""
TASK_METHODS: dict[Task, tuple[Method, ...]] = {
    "classification": get_args(Method),
    "multilabel": ("likelihood", "squared_error", "greedy"),
    "regression": get_args(Method),
}
MixRule = Literal["mean", "logits", "auto"]
"""What a weighted mix is of: probabilities, log-probabilities, or the likelier one on validation rows."""
TRIM = 0.1
"""Share of the members that `trimmed_mean` leaves out at each end."""


class Parallel(Pooled):
    """Every member answers every row; a fixed rule makes one answer of them (by default the mean)."""

    kind: Literal["parallel"] = "parallel"
    rule: Rule = "mean"
    trim: float = Field(TRIM, gt=0, lt=0.5)
    """`trimmed_mean` only: share of the members left out at each end, at least one of three or more."""
    weights: Numbers | None = None
    """`weighted_vote` only: each member's share of the votes; fitted on validation data when not given."""

    @model_validator(mode="after")
    def _weights(self) -> Parallel:
        if self.weights is not None:
            if self.rule != "weighted_vote":
                raise ValueError(
                    f"rule {self.rule} takes no weights: use weighted_vote, or kind weighted_mix"
                )
            on_simplex(self.weights, len(self.members))
        return self

    def unfitted(self) -> str | None:
        lacking = self.rule == "weighted_vote" and self.weights is None
        return "parallel with rule weighted_vote has no weights" if lacking else None


Criterion = Literal["confidence", "margin", "entropy", "agreement"]
"""What makes an answer sure: `orchestrator.ensemble.certainty`."""


class Cascade(Combined):
    """Cascade: a row goes to the next stage only while the answer so far is less sure than the threshold.

    (Viola and Jones 2001; Wang et al., https://arxiv.org/abs/2012.01988.)
    """

    below: ClassVar[str | None] = "stages"
    kind: Literal["sequential"] = "sequential"
    policy: Literal["cascade"] = "cascade"
    stages: tuple[Node, ...] = Field(min_length=2)
    criterion: Criterion = "confidence"
    """How sure an answer is, from 0 to 1: the top probability; the distance of the top two; 1 less the
    entropy as a share of its largest value; or the share of an ensemble's members that say what it says. Of
    several labels the least sure one counts, each as two classes."""
    combine: Literal["replace", "mean"] = "replace"
    """A later stage's answer replaces the earlier ones, or is averaged with them."""
    thresholds: Numbers | None = None
    """One for each stage but the last, fitted when not given; a row leaves that is at least so sure."""
    tolerance: float | None = Field(None, ge=0)
    """When fitting: how much worse than the last stage validation rows may fare, in exchange for earlier
    exits. 0 when nothing else is asked for."""
    max_cost: float | None = Field(None, gt=0, le=1)
    """When fitting: rows leave only until the expected cost is this share of the cost without exits. Alone it
    must be reached; beside a tolerance or a guarantee it is reached as far as they allow."""
    guarantee: Guarantee | None = None
    """When fitting: rows leave only as far as calibration rows allow to promise this."""
    certificate: Certificate | None = None
    """Filled in when a guarantee is fitted."""

    @model_validator(mode="after")
    def _thresholds(self) -> Cascade:
        needed = len(self.stages) - 1
        if self.thresholds is not None and len(self.thresholds) != needed:
            raise ValueError(f"{needed + 1} stages need {needed} thresholds, got {len(self.thresholds)}")
        if self.thresholds is not None and self.guarantee is not None and self.certificate is None:
            raise ValueError("given thresholds have no guarantee: leave out 'thresholds' or 'guarantee'")
        return self

    def unfitted(self) -> str | None:
        return "sequential has no thresholds" if self.thresholds is None else None


class Stacking(Pooled):
    """Stacking: every member answers every row, and a linear meta-learner combines what they say.

    (Wolpert 1992; Ting and Witten 1999, https://arxiv.org/abs/1105.5466.)
    """

    kind: Literal["sequential"] = "sequential"
    policy: Literal["stacking"]
    folds: int | None = Field(None, ge=2, le=20, exclude_if=absent)
    """Fit the meta-learner on train rows: each member is trained so many times more, without the rows of one
    fold, and says of these what the meta-learner sees. On validation rows when not given."""
    strength: float | None = Field(None, gt=0)
    """L2 penalty on what is added to the members' mean; chosen by cross-validation on the same rows when not
    given."""
    coefficients: tuple[Numbers, ...] | None = None
    """[members * classes + 1, classes], the last row the intercept; filled in when fitted."""
    out_of_fold: float | None = None
    """The run's metric on the rows that it is fitted on, each answered by a meta-learner fitted without its
    fold; filled in when fitted."""

    @model_validator(mode="after")
    def _coefficients(self) -> Stacking:
        found = self.coefficients
        if found is not None:
            classes = len(found[0]) if found else 0
            if {len(row) for row in found} != {classes} or len(found) != len(self.members) * classes + 1:
                raise ValueError(
                    f"coefficients need {len(self.members)} members x outputs + 1 rows, one number for each "
                    f"output; got {len(found)} rows, the first of {classes}"
                )
        return self

    def unfitted(self) -> str | None:
        return "stacking has no coefficients" if self.coefficients is None else None


class Chain(Pooled):
    """Stacking chain: later models see the inputs and what all models before them said; the last one answers.

    They are trained on what models say of rows that these were not trained on. (Gama and Brazdil 2000,
    Cascade generalization, https://doi.org/10.1023/A:1007652114878.)
    """

    kind: Literal["sequential"] = "sequential"
    policy: Literal["chain"]
    members: tuple[Node, ...] = Field(min_length=1)
    """Models of the run that are trained here; once trained, the later models stand behind them."""
    later: tuple[Later, ...] = Field(min_length=1, max_length=10)
    """In their order; each sees all before it."""
    folds: int = Field(5, ge=2, le=20)
    """Each model that others see is trained so many times more, without the rows of one fold."""

    def _most(self) -> int:
        return len(self.members) + (len(self.later) if self.unfitted() else 0)

    def unfitted(self) -> str | None:
        last = self.members[-1]
        trained = isinstance(last, Member) and last.sees
        return None if trained else "chain has no trained later models"


class Boosting(Combined):
    """Boosting: stages one after the other, each trained on what the sum of those before it got wrong.

    The answer is the sum of the stages' logits (regression: values), each times its factor. (Friedman 2001,
    https://doi.org/10.1214/aos/1013203451.) All stages are asked together. A stage corrects those before it,
    so without one those after it count as missing, too: a quorum is one of the first stages.
    """

    below: ClassVar[str | None] = "members"
    kind: Literal["sequential"] = "sequential"
    policy: Literal["boosting"]
    base: str
    """A model of the run that is trained here: the first stage. The others are trained by its settings."""
    rounds: int = Field(4, ge=2, le=100)
    """Stages at most, the first among them."""
    shrinkage: float | None = Field(None, gt=0, le=1)
    """Share of the step of least training loss that is taken; when not given, each step is the one of least
    validation loss, but no longer than that."""
    members: tuple[Annotated[Member, BeforeValidator(member_of_name)], ...] = ()
    """The stages; filled in when they are trained."""
    factors: Numbers | None = None
    """One for each stage; filled in when they are trained."""
    train_losses: Numbers | None = None
    """On train rows, of the sum up to each stage: negative log-likelihood, or squared error in units of the
    targets' deviations; filled in when they are trained."""
    survivors: tuple[Survivors, ...] = ()
    """Filled in when it is fitted with a quorum and a calibration: for each number of first stages."""

    @model_validator(mode="after")
    def _trained(self) -> Self:
        for key in ("factors", "train_losses"):
            found: Numbers | None = getattr(self, key)
            if found is not None and len(found) != len(self.members):
                raise ValueError(f"{len(self.members)} stages need as many {key}, got {len(found)}")
        return self

    def _most(self) -> int:
        return len(self.members) or self.rounds

    def unfitted(self) -> str | None:
        return "boosting has no trained stages" if not self.members or self.factors is None else None


class WeightedMix(Pooled):
    """Weighted mean of the members' probabilities (regression: outputs); weights are >= 0 and sum to 1."""

    kind: Literal["weighted_mix"] = "weighted_mix"
    rule: MixRule = Field("mean", exclude_if=lambda rule: rule == "mean")
    """`logits`: the weighted mean of log-probabilities, renormalised. `auto`: of the two the one with the
    least negative log-likelihood on validation rows, after a temperature where a calibration follows."""
    method: Method = "likelihood"
    prior: int | None = Field(None, ge=1, exclude_if=absent)
    """`likelihood` of a classification only: rows added for each member that it alone answers rightly. Where
    validation rows are few or nearly all right, it keeps weights from being decided by one or two of them."""
    objective: Literal["nll", "metric"] = "nll"
    """What `greedy` selects by, and what the strength of `per_class` and `gate` is chosen by: the negative
    log-likelihood (regression: squared error), or the run's metric."""
    rounds: int = Field(100, ge=1)
    """`greedy` only: selections; weights are multiples of one over the number of those that were kept."""
    bags: int = Field(1, ge=1)
    """`greedy` only: with more than one, as many selections among random halves of the members, averaged."""
    strength: float | None = Field(None, gt=0)
    """`per_class` and `gate` only: pull towards weights that are alike for all; chosen by cross-validation
    on validation data when not given."""
    weights: Numbers | None = None
    """Fitted on validation data when not given. Under `per_class` and `gate` those that are alike for all."""
    class_weights: tuple[Numbers, ...] | None = None
    """`per_class` only: for each member a weight for each class (regression: each output); fitted."""
    gate: tuple[Numbers, ...] | None = None
    """`gate` only: for each member a constant and a factor for each feature of its own output; fitted."""

    @model_validator(mode="after")
    def _fitting(self) -> WeightedMix:
        if self.prior is not None and self.method != "likelihood":
            raise ValueError(f"prior belongs to method likelihood, not {self.method}")
        if self.rule != "mean" and (self.method not in POOL_METHODS or self.prior is not None):
            taken = "a prior" if self.prior is not None else f"method {self.method}"
            raise ValueError(f"{taken} belongs to rule mean, not {self.rule}: leave out one of them")
        if self.objective != "nll" and self.method in ("likelihood", "squared_error"):
            raise ValueError(f"method {self.method} has its own objective: take greedy, per_class or gate")
        for method, key in (("per_class", "class_weights"), ("gate", "gate")):
            found: tuple[Numbers, ...] | None = getattr(self, key)
            if found is None:
                continue
            if self.method != method:
                raise ValueError(f"{key} belongs to method {method}, not {self.method}")
            if len(found) != len(self.members) or len({len(row) for row in found}) != 1:
                raise ValueError(f"{key} needs {len(self.members)} rows of one length, one for each member")
        return self

    @model_validator(mode="after")
    def _weights(self) -> WeightedMix:
        if self.weights is not None:
            on_simplex(self.weights, len(self.members))
        for column in zip(*(self.class_weights or ()), strict=True):
            on_simplex(column, len(self.members))
        return self

    def unfitted(self) -> str | None:
        if self.rule == "auto":
            return "weighted_mix has no chosen rule"
        needed = {"per_class": ("weights", "class_weights"), "gate": ("weights", "gate")}
        for key in needed.get(self.method, ("weights",)):
            if getattr(self, key) is None:
                return f"weighted_mix has no {key}"
        return None


def _policy(value: Any) -> Any:
    return value.get("policy", "cascade") if isinstance(value, dict) else getattr(value, "policy", None)


Sequential = Annotated[
    Annotated[Cascade, Tag("cascade")]
    | Annotated[Boosting, Tag("boosting")]
    | Annotated[Chain, Tag("chain")]
    | Annotated[Stacking, Tag("stacking")],
    Discriminator(_policy),
]
"""Models that see what others said, told apart by `policy`."""
_Combination = Parallel | Sequential | WeightedMix
AnyNode = Member | _Combination
Node = Annotated[Annotated[AnyNode, Field(discriminator="kind")], BeforeValidator(member_of_name)]
PooledNode = Parallel | Stacking | Chain | WeightedMix
"""Ensembles whose members all answer every row; functions for all of them are registered for this union."""
Ensemble = Annotated[_Combination, Field(discriminator="kind")]

for _class in (Member, Pooled, Parallel, Cascade, Stacking, Chain, Boosting, WeightedMix):
    _class.model_rebuild()


class Spec(Settings):
    """A fitted ensemble tree: what `orchestrator serve` takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The model's name in the protocol."""
    tree: Node
    """An ensemble, or one member: then there is one model to serve."""
    signature: Signature
    weight_epoch: int = Field(0, ge=0)
    """Version of weights and thresholds; every answer names it."""
    batch: int = Field(32, ge=1)
    """Most rows that one member call takes at once."""
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fitted(self) -> Spec:
        for node in walk_nodes(self.tree):
            if (missing := node.unfitted()) is not None:
                raise ValueError(f"{missing}: fit the ensemble first")
            if isinstance(node, Combined) and node.calibration is not None and not node.calibration.fitted:
                raise ValueError(f"{node.kind} is not calibrated: fit the ensemble first")
        if isinstance(self.tree, Combined):
            for found in (self.tree.prediction_sets, self.tree.intervals, self.tree.reject):
                if found is not None and not found.fitted:
                    raise ValueError(f"{self.tree.kind} has no fitted sets or reject: fit the ensemble first")
        return self


def children(node: AnyNode) -> tuple[Node, ...]:
    """The members or stages of a node; none of a leaf."""
    found: tuple[Node, ...] = () if node.below is None else getattr(node, node.below)
    return found


def with_children(node: AnyNode, found: Sequence[AnyNode]) -> AnyNode:
    """A node that is no leaf with other members or stages."""
    assert node.below is not None
    return node.model_copy(update={node.below: tuple(found)})


def walk_nodes(node: AnyNode) -> list[Node]:
    """The node and all below it, depth first, in file order."""
    return [node, *(below for child in children(node) for below in walk_nodes(child))]


def leaves(node: AnyNode) -> list[Member]:
    """All distinct leaves in file order, each behind those that it sees."""
    found = [leaf for leaf in walk_nodes(node) if isinstance(leaf, Member)]
    return list(dict.fromkeys(one for leaf in found for one in (*_seen_by(leaf), leaf)))


def _seen_by(member: Member) -> list[Member]:
    """The members that it sees, and those that these see, before them."""
    return [one for seen in member.sees for one in (*_seen_by(seen), seen)]
