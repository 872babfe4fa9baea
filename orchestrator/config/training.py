"""How a model is trained (what decides the weights) and on which resources."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.clipping import Clipping
from orchestrator.config.constraints import Penalty, Sparsify
from orchestrator.config.data import DataSettings
from orchestrator.config.imports import ImportPath
from orchestrator.config.signature import Task


class CrossEntropy(Settings):
    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] | None = (
        Field(None, exclude_if=absent)
    )
    """Factor of a row's loss, by its class: a list in label order, or `balanced`, rows over classes times the
    class's rows in the train part, so that every class weighs the same and a row 1 on average."""


class BinaryCrossEntropy(Settings):
    """Of each label by itself, on its logit; the mean over rows and labels."""

    kind: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = Field(None, exclude_if=absent)
    """Factor of the loss where a label is there, one a label in their order, or `balanced`: rows without it
    over rows with it in the train part, so that both weigh the same."""


class MeanSquaredError(Settings):
    """On targets scaled to zero mean and unit deviation, so that several targets weigh the same."""

    kind: Literal["mse"] = "mse"


class Feature(Settings):
    """Two layers that are to agree, besides the outputs."""

    student: str
    """Name of the layer in the student."""
    teacher: str | None = None
    """In the teacher; the same name when not given."""
    kind: Literal["hint", "attention"] = "hint"
    """hint: equal outputs after a learned projection (Romero et al. 2014, https://arxiv.org/abs/1412.6550).
    attention: equal maps of where the outputs are large (Zagoruyko and Komodakis 2016,
    https://arxiv.org/abs/1612.03928)."""
    weight: float = Field(1.0, gt=0)


class DistillationLoss(Settings):
    """Hinton et al. 2015 (https://arxiv.org/abs/1503.02531).

    `weight * T^2 * KL(teacher || student) + (1 - weight) * CE`, T the temperature.

    With `form: mse` the first term is the mean squared difference of the logits, without temperature (Kim
    et al. 2021, https://arxiv.org/abs/2105.08919).

    For several labels: binary cross-entropy to the teacher's probability at that temperature, the mean over
    labels. For regression: squared error to the teacher's output. Both are mixed in the same way. Rows
    without a label (an unlabelled transfer set) have the teacher's term alone.
    """

    kind: Literal["distillation"] = "distillation"
    form: Literal["kl", "mse"] = "kl"
    temperature: float = Field(4.0, gt=0)
    weight: float = Field(0.9, ge=0, le=1)
    features: tuple[Feature, ...] = ()
    """Layers inside that are to agree, too; steps only. The teacher then runs in every epoch: its outputs can
    be kept, its layers' are too large."""


class CustomLoss(Settings):
    """`fn(outputs: Tensor [B, K], targets: Tensor [B] or [B, T], **kwargs) -> scalar Tensor`."""

    kind: Literal["custom"] = "custom"
    loss: ImportPath
    kwargs: dict[str, Any] = Field(default_factory=dict)


class MutualLoss(Settings):
    """Models that are trained together learn from each other (Zhang et al. 2018, deep mutual learning,
    https://arxiv.org/abs/1706.00384).

    Sum over the models of their own loss and `weight` times the mean of KL(other || model) over the others,
    whose answers count as given. For a regression squared differences take the place of the KL.
    """

    kind: Literal["mutual"] = "mutual"
    weight: float = Field(1.0, gt=0)


class NegativeCorrelation(Settings):
    """Models that are trained together are kept apart (Liu and Yao 1999, negative correlation learning,
    https://doi.org/10.1016/S0893-6080(99)00073-8).

    Sum over the models of their own loss less `weight` times the ambiguity: their mean loss less that of
    their mean. For probabilities the same with the log-loss (Webb et al. 2019,
    https://arxiv.org/abs/1902.04422; Buschjäger et al. 2020, https://arxiv.org/abs/2011.02952).
    """

    kind: Literal["negative_correlation"] = "negative_correlation"
    weight: float = Field(0.5, gt=0, le=1)
    """1 trains the mean as one model; then single ones may be of little use."""


LossSettings = Annotated[
    CrossEntropy
    | BinaryCrossEntropy
    | MeanSquaredError
    | DistillationLoss
    | MutualLoss
    | NegativeCorrelation
    | CustomLoss,
    Field(discriminator="kind"),
]
JOINT_LOSSES = (MutualLoss, NegativeCorrelation)
"""Of several models that are trained together."""
TASK_LOSSES: dict[Task, tuple[str, ...]] = {
    "classification": ("cross_entropy", "distillation", "mutual", "negative_correlation", "custom"),
    "multilabel": ("binary_cross_entropy", "distillation", "custom"),
    "regression": ("mse", "distillation", "mutual", "negative_correlation", "custom"),
}
"""What each task can be trained with; the first is its own, used where the run file names none."""


class Augment(Settings):
    """Image augmentation as a pure function of (seed, sample id, view); epoch e uses view e mod `views`."""

    flip: bool = False
    """Mirror left-right in every second view; a row's own bit decides in which half of them."""
    crop: int = Field(0, ge=0)
    """Pad by this many pixels (reflected) and cut at a random place."""
    cutout: int = Field(0, ge=0)
    """Paint a square of this many pixels a side, at a random place, in the image's mean color."""
    cutmix: float | None = Field(None, gt=0, le=1, exclude_if=absent)
    """Share of the rows that get a patch of another row (Yun et al. 2019, https://arxiv.org/abs/1905.04899).
    Distillation only: the teacher says what the mixture shows, and the row's label no longer counts."""
    views: int = Field(4, ge=1)


class Sample(Settings):
    """Train on drawn rows: bagging (Breiman 1996, https://doi.org/10.1023/A:1018054314350) as it stands."""

    share: float = Field(1.0, gt=0, le=1)
    """Rows to draw, of those that there are."""
    replacement: bool = True
    """Whether a row may be drawn more than once; without it the share must be below 1."""

    @model_validator(mode="after")
    def _draws(self) -> Sample:
        if not self.replacement and self.share == 1:
            raise ValueError("without replacement a share of 1 is every row: lower 'share'")
        return self


class Lookahead(Settings):
    """Average the weights along the way (Zhang et al. 2019, https://arxiv.org/abs/1907.08610)."""

    every: int = Field(5, ge=1)
    """Steps between two pulls towards the slow weights."""
    share: float = Field(0.77, gt=0, lt=1)
    """Of the slow weights in the last pull; it rises from 0 with the cube of the steps done."""


class Training(Settings):
    """One training run; together with model, data and seed it decides the weights."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    """Rows an optimizer step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    """The schedule's peak."""
    bias_lr: float = Field(1.0, gt=0)
    """Factor of the rate for biases and normalization parameters."""
    momentum: float = Field(0.9, ge=0, lt=1)
    lookahead: Lookahead | None = None
    weight_decay: float = Field(5e-4, ge=0)
    """Not applied to biases and normalization parameters."""
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = Field(0.2, ge=0, lt=1)
    """Share of the steps in which the rate rises."""
    loss: LossSettings | None = None
    """Cross-entropy or squared error by task when not given."""
    augment: Augment = Augment()
    sample: Sample | None = Field(None, exclude_if=absent)
    """Learn from rows that the seed draws; all when not given."""
    snapshots: int | None = Field(None, ge=2, le=100, exclude_if=absent)
    """Restart the schedule so often and keep the model at the end of each cycle (Huang et al. 2017, snapshot
    ensembles, https://arxiv.org/abs/1704.00109): several models for the epochs of one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; the weights stay fp32."""
    channels_last: bool = False
    compile: bool = False
    """Train through `torch.compile`; falls back with a warning where no compiler is found."""
    grad_clip: float | None = Field(None, gt=0)
    """Largest gradient norm."""
    sparsify: Sparsify | None = None
    """Prune single weights gradually while training."""
    penalty: Penalty | None = None
    """Drive weights, channels or batch norm scales to zero."""
    clip_weights: Clipping | None = None
    """Cut weights to a limit after each step (projected clipping); keys as in step `clip`."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better validation metric; the best epoch's weights are kept."""
    transfer: DataSettings | None = None
    """Distillation only: train on the train part of these rows (labels ignored) instead of the data's."""

    @model_validator(mode="after")
    def _someone_says_what_a_mixture_shows(self) -> Training:
        if self.augment.cutmix is None:
            return self
        if self.sample is not None:
            raise ValueError("augment.cutmix and 'sample' exclude each other: patches come from all rows")
        if not isinstance(self.loss, DistillationLoss):
            raise ValueError("augment.cutmix needs a distillation loss: no label is known of a mixture")
        return self

    @model_validator(mode="after")
    def _cycles(self) -> Training:
        if self.patience is not None and self.sparsify is not None:
            # The best epoch is mostly one before the pruning.
            raise ValueError("'patience' and 'sparsify' exclude each other: it would end with too few zeros")
        if self.snapshots is None:
            return self
        if self.epochs % self.snapshots:
            raise ValueError(f"{self.epochs} epochs cannot be cut into {self.snapshots} equal cycles")
        if self.schedule == "constant":
            raise ValueError("'snapshots' need a schedule that comes to rest: cosine or onecycle")
        if self.patience is not None:
            raise ValueError("'snapshots' and 'patience' exclude each other: the rate rises again on purpose")
        for key in ("sparsify", "lookahead"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"'snapshots' and '{key}' exclude each other: it unfolds over all cycles together"
                )
        return self


def _fits_a_step(training: Training) -> Training:
    if training.transfer is not None:
        raise ValueError("'transfer' is for models of a run file, steps learn from the train part: remove it")
    if training.snapshots is not None or isinstance(training.loss, JOINT_LOSSES):
        raise ValueError("'snapshots' and losses of models trained together are for models of a run file")
    return training


StepTraining = Annotated[Training, AfterValidator(_fits_a_step)]
"""A training inside a step: one model goes in and one comes out, on the rows of the train part."""


def over(own: Training) -> BeforeValidator:
    """Of a step's `training`: what a file leaves open is as in the step's `own`."""
    said = {name: value for name, value in own.plain().items() if name in own.model_fields_set}
    return BeforeValidator(lambda value: {**said, **value} if isinstance(value, dict) else value)


class Resources(Settings):
    """Where a training runs.

    `cpus` (threads), `workers` and `strategy` change the weights and so stand in the manifest.
    """

    workers: int | tuple[int, int] = 1
    """Data-parallel workers, or (least, most) for elastic training."""
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, a worker."""
    gpus: float = Field(0, ge=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    max_failures: int = Field(1, ge=0)
    """Restarts from the last checkpoint after a worker died."""
    step_timeout_s: float | None = Field(None, gt=0, exclude_if=absent)
    """A worker without a finished step for so long is ended and counts as dead; 1,800 when not given."""
    labels: dict[str, str] | None = Field(None, exclude_if=absent)
    """Of the nodes that may train it, by Ray's label selectors (`{market: spot}`)."""

    @model_validator(mode="after")
    def _workers(self) -> Resources:
        least, most = self.span
        if not 1 <= least <= most:
            raise ValueError(f"workers must be at least 1 and (least, most) in order, got {self.workers}")
        return self

    @property
    def span(self) -> tuple[int, int]:
        """(least, most) workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
