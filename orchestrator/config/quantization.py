"""Steps that change the numbers' type."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.measure import Execution
from orchestrator.config.training import DistillationLoss, StepTraining, Training, over

Precision = Literal[
    "fp32", "bf16", "fp8", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only"
]

_FLOAT: tuple[Execution, ...] = ("eager", "aoti", "openvino")
EXECUTIONS: dict[Precision, tuple[Execution, ...]] = {
    "fp32": _FLOAT,
    "bf16": _FLOAT,
    "fp8": ("eager", "aoti"),
    "int8_static": ("lowered", "aoti", "openvino"),
    "int8_dynamic": ("lowered",),
    "int8_weight_only": _FLOAT,
    "int4_weight_only": _FLOAT,
}
"""How an artifact of a precision can run, the simplest first."""


class Bf16(Settings):
    """Weights and arithmetic in bfloat16; input scaling and outputs stay float32."""

    kind: Literal["bf16"] = "bf16"
    stage: ClassVar[int] = 40


class Fp8(Settings):
    """8-bit floating point (e4m3) weights and activations of linears, for GPUs from Ada and Hopper on.

    Activations are scaled by row at run time, weights by output channel. Elsewhere the same rounding is
    computed in float32: smaller, not faster.
    """

    kind: Literal["fp8"] = "fp8"
    stage: ClassVar[int] = 40
    keep_float: tuple[str, ...] = ()
    """Names of layers that stay float."""


_QAT = Training(epochs=2, lr=0.005, loss=DistillationLoss())


class Qat(Settings):
    """Train on with the rounding of a number type in the forward pass; the step of that type follows.

    For models that the type costs too much otherwise.
    """

    kind: Literal["qat"] = "qat"
    stage: ClassVar[int] = 35
    to: Literal["int8_static", "int8_weight_only", "int4_weight_only"] = "int8_static"
    """The number type."""
    group: int | None = Field(None, ge=2)
    """Weight-only types: that of the step that follows; its default when not given."""
    training: Annotated[StepTraining, over(_QAT)] = _QAT
    rows: int = Field(256, ge=1)
    """Calibration rows that activations take their first ranges from."""
    keep_float: tuple[str, ...] = ()
    """Names of layers that will stay float."""
    reduce_range: bool = False
    """As `int8_static` has it."""

    @model_validator(mode="after")
    def _of_the_type(self) -> Qat:
        if self.to == "int8_static" and self.group is not None:
            raise ValueError("'group' is for weight-only types")
        if self.to != "int8_static" and self.reduce_range:
            raise ValueError("'reduce_range' is for int8_static")
        return self


class _Int8(Settings):
    reduce_range: bool = False
    """Keep activations to 7 bits, so that the artifact runs on CPUs without VNNI, too; one that is made on
    such a CPU always does."""


class StaticInt8(_Int8):
    """int8 weights and activations of convolutions and linears (PT2E, X86 quantizer).

    Activation ranges come from the calibration part.
    """

    kind: Literal["int8_static"] = "int8_static"
    stage: ClassVar[int] = 40
    rows: int = Field(256, ge=1)
    """Calibration rows."""
    observer: Literal["histogram", "minmax", "percentile", "mse"] = "histogram"
    """How an activation's range is found: least error by torchao's search, all values seen, all but the
    tails, or the shrunken range of least squared error."""
    percentile: float = Field(99.99, gt=50, le=100)
    """Share of the values, in percent, below the upper and above the lower end (observer percentile)."""
    keep_float: tuple[str, ...] = ()
    """Names of layers that stay float."""
    max_drop: float | None = Field(None, ge=0)
    """Keep further layers in float, those that hurt most first, until the metric on validation rows is worse
    by this at most."""
    confidence: float | None = Field(None, gt=0.5, lt=1, exclude_if=absent)
    """With `max_drop`: until not only the drop on these rows but its upper bound at this confidence is
    within, by the test of a promise. Each set of layers has its own test: the contract part judges the one
    that is chosen."""

    @model_validator(mode="after")
    def _of_a_bound(self) -> StaticInt8:
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("'confidence' goes with 'max_drop'")
        return self


class DynamicInt8(_Int8):
    """int8 weights of linears, activation ranges found at run time (PT2E, X86 quantizer)."""

    kind: Literal["int8_dynamic"] = "int8_dynamic"
    stage: ClassVar[int] = 40
    keep_float: tuple[str, ...] | None = Field(None, exclude_if=absent)
    """Names of layers that stay float."""


class WeightOnlyInt8(Settings):
    """int8 weights of convolutions and linears, computed in float: smaller, not faster."""

    kind: Literal["int8_weight_only"] = "int8_weight_only"
    stage: ClassVar[int] = 40
    group: int | None = Field(None, ge=2)
    """Weights of an output channel that share a scale; all of them when not given."""
    keep_float: tuple[str, ...] | None = Field(None, exclude_if=absent)
    """Names of layers that stay float."""


class WeightOnlyInt4(Settings):
    """int4 weights, two to a byte, computed in float: smaller, not faster."""

    kind: Literal["int4_weight_only"] = "int4_weight_only"
    stage: ClassVar[int] = 40
    group: int = Field(32, ge=2)
    """Weights of an output channel that share a scale."""
    keep_float: tuple[str, ...] | None = Field(None, exclude_if=absent)
    """Names of layers that stay float."""
