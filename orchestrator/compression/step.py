"""What a compression step gets and gives; each step registers its function with `apply_step`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.base import Settings
from orchestrator.config.measure import TASK_METRICS, Metric
from orchestrator.config.model import ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Step
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.models.build import example_rows
from orchestrator.training.batches import Views
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.state import EpochReport

ParentOutputs = Callable[[Training], Views]
"""From a training to the parent's outputs on the train rows in every view."""


@dataclass(frozen=True)
class Other:
    """A model that a step names besides its parent: a teacher, or one to merge with."""

    module: Callable[[], nn.Module]
    """Builds it, in eval mode."""
    model: ModelSettings | None
    """What builds its untrained form; None for a module that no settings describe."""
    outputs: ParentOutputs | None = None
    """Its outputs on the train rows, kept in the store; without it a step runs the model itself."""


def _no_others(name: str) -> Other:
    raise CompressionError("no other model is known by this name", name, "pass others={name: module}")


@dataclass(frozen=True)
class Context:
    """What steps may use besides the model; each step says when something it needs is missing."""

    seed: int
    threads: int = 1
    """torch threads of every step; they change the weights."""
    device: str = "cpu"
    """Where steps train; what they give is on the CPU again."""
    data: str | None = None
    """Digest of the data set; the parent's own when not given."""
    calibration: NDArray[Any] | None = None
    """Raw rows [N, *input_shape] for quantization ranges."""
    train: Part | None = None
    validation: Part | None = None
    metric: Metric | None = None
    """What recovery reports and stops early by; the task's plain one (accuracy, RMSE) when not given."""
    allowed: Collection[str] = ()
    on_epoch: Callable[[EpochReport], None] | None = None
    """Called after each epoch of a recovery; epochs count on from one step of a plan to the next."""
    checkpoint: Checkpoint | None = None
    """Where a step that trains keeps its last epoch, to go on from there when its process dies."""
    other: Callable[[str], Other] = _no_others
    """Finds a model that a step names in `others`; raises CompressionError or NotFoundError."""


def after_epochs(context: Context, epochs: int) -> Context:
    """The context of what is trained after so many epochs of the same plan."""
    tell = context.on_epoch
    if tell is None or not epochs:
        return context
    return replace(context, on_epoch=lambda report: tell(replace(report, epoch=epochs + report.epoch)))


@dataclass(frozen=True)
class State:
    """A model between two steps."""

    module: nn.Module
    """In eval mode; a step works on a copy."""
    signature: Signature
    parent: Callable[[], nn.Module]
    """Builds the model that the plan started from: the teacher of a recovery."""
    parent_outputs: ParentOutputs | None = None
    """Its outputs on the train rows, kept in the store; without it a recovery runs the parent itself."""
    model: ModelSettings | None = None
    """Builds the untrained form that decisions are replayed on; a step of stage 0 may change it."""
    plan: tuple[Step, ...] = ()
    """Steps applied so far."""
    decisions: tuple[dict[str, Any], ...] = ()
    """What each of them decided: plain JSON."""
    sparse: bool = False
    """Whether the model's own training set single weights to zero."""
    given: bool = False
    """Whether the module was handed in: its code need not be that which `model` builds."""

    def after(self, step: Step, module: nn.Module, decision: dict[str, Any], **changes: Any) -> State:
        """The state when `step` has turned the module into `module`."""
        return replace(
            self,
            module=module,
            plan=(*self.plan, step),
            decisions=(*self.decisions, {"kind": step.kind, **decision}),
            **changes,
        )


def metric_of(context: Context, signature: Signature) -> Metric:
    """What recovery and bounds are judged by: the context's metric, or the task's plain one."""
    return context.metric or plain_metric(signature)


def plain_metric(signature: Signature) -> Metric:
    """The task's own."""
    return Metric(name=TASK_METRICS[signature.task][0])


@singledispatch
def apply_step(step: Settings, state: State, context: Context) -> State:  # noqa: ARG001
    """Apply one step to a model, which is not changed.

    A step's module registers its function for its settings class.

    Raises:
        CompressionError: the step does not fit the model, or would do nothing.
    """
    raise CompressionError("no function is registered for the step", type(step).__name__)


def run_step(step: Step, state: State, context: Context) -> State:
    """Apply one step under the context's seed and threads, and check that the result still answers.

    Raises:
        CompressionError: the step does not fit, would do nothing, or broke the model.
    """
    with seeded(context):
        after = apply_step(step, state, context)
        _check_outputs(step, after)
    return after


@contextmanager
def seeded(context: Context) -> Iterator[None]:
    """The context's seed and threads inside; outside the caller's torch is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(context.threads)
    try:
        # A caller's inference mode would make tensors that autograd refuses.
        with torch.inference_mode(False), torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(context.seed)
            yield
    finally:
        torch.set_num_threads(threads)


def masks_of(module: nn.Module, plan: Sequence[Step], sparse: bool = False) -> dict[str, Tensor] | None:
    """The masks of a module whose plan or (`sparse`) own training set single weights to zero: its zeros."""
    if not sparse and not any(map(makes_zeros, plan)):
        return None
    return {name: tensor.detach() != 0 for name, tensor in weights_of(module).items()}


def makes_zeros(step: Step) -> bool:
    """Whether the step sets single weights to zero, which a file of weights leaves out."""
    trainings: list[Training | None] = [getattr(step, name, None) for name in ("training", "recovery")]
    sparsified = any(training is not None and training.sparsify is not None for training in trainings)
    return step.kind == "prune_magnitude" or sparsified


def copy_of(module: nn.Module) -> nn.Module:
    """An independent eval-mode copy to work on."""
    return copy.deepcopy(module).eval()


def stays_float(asked: Collection[str], left: Mapping[str, str]) -> dict[str, Any]:
    """What a decision says of layers that stay float: as asked, or for a reason; else nothing."""
    return ({"keep_float": list(asked)} if asked else {}) | ({"left": dict(left)} if left else {})


def _check_outputs(step: Step, state: State) -> None:
    rows = example_rows(state.signature, 2)
    try:
        with torch.no_grad():
            outputs = state.module(rows)
    except Exception as error:
        # The forward may be of other people's code, which raises anything.
        told = f"{type(error).__name__}: {str(error).strip()[:200]}"
        raise CompressionError(
            f"after '{step.kind}' the model no longer runs ({told})",
            fix="its forward depends on a width that was pruned: name the layers in fixed_width_layers()"
            if step.kind == "prune_channels"
            else "leave the step out, or take another model",
        ) from error
    if outputs.shape != (2, state.signature.outputs) or not torch.isfinite(outputs).all():
        raise CompressionError(
            f"after '{step.kind}' the model gives no finite outputs of shape [B, {state.signature.outputs}]",
            list(outputs.shape),
        )
