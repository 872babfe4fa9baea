"""Apply a plan of compression steps to an artifact; every prefix of the plan is an artifact of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

# Imported for their registration with `apply_step`.
from orchestrator.compression import (  # noqa: F401
    channels,
    clip,
    distill,
    factorize,
    fp8,
    heads,
    magnitude,
    merge,
    qat,
    quantize,
    vocabulary,
    weight_only,
)
from orchestrator.compression.ensembles import as_other, check_same_answers
from orchestrator.compression.step import (
    Context,
    Other,
    ParentOutputs,
    State,
    after_epochs,
    apply_step,
    run_step,
)
from orchestrator.config.base import fingerprint
from orchestrator.config.measure import Metric
from orchestrator.config.steps import (
    Distill,
    DynamicInt8,
    Merge,
    Plan,
    StaticInt8,
    Step,
    epochs_of,
    first_out_of_order,
    others_of,
    with_others,
)
from orchestrator.config.training import Training
from orchestrator.errors import CompressionError, PlanError, TrainingError
from orchestrator.runtime.int8 import reduce_range
from orchestrator.runtime.rebuild import keep_form, rebuild, tensors_of
from orchestrator.store.artifacts import Draft, Manifest
from orchestrator.store.store import Store
from orchestrator.training.batches import Views
from orchestrator.training.checkpoint import Checkpoint, Stopped
from orchestrator.training.teacher import TeacherCache

__all__ = [
    "Context",
    "State",
    "apply_plan",
    "apply_step",
    "check_plan",
    "plan_key",
    "run_step",
    "what_decides",
]

ORDER = (
    "distill or merge, prune_channels, prune_heads, prune_vocabulary, factorize, prune_magnitude, recover, "
    "clip, qat, a number type"
)

_VERSION = 7
"""Raise when a step would give another artifact for the same input."""


def check_plan(plan: Sequence[Step]) -> None:
    """Refuse a plan whose steps are out of order: their stages must rise, but for recoveries in a row.

    Raises:
        PlanError: names the two steps.
    """
    if (pair := first_out_of_order(plan)) is not None:
        earlier, later = pair
        raise PlanError(
            f"'{later.kind}' cannot follow '{earlier.kind}'",
            " -> ".join(step.kind for step in plan),
            f"the order is {ORDER}",
        )


def plan_key(
    parent: str,
    plan: Sequence[Step],
    data: str,
    seed: int,
    threads: int,
    metric: Metric | None = None,
    device: str = "cpu",
) -> str:
    """Stage key of a plan on a parent: everything that decides the artifact.

    The metric does where a step looks at it.
    """
    judged = any(map(_by_metric, plan))
    return fingerprint(
        {
            **({"metric": None if metric is None else metric.plain()} if judged else {}),
            "stage": "compress",
            "version": _VERSION,
            "parent": parent,
            "plan": [step.plain() for step in plan],
            "data": data,
            "seed": seed,
            **({} if device == "cpu" else {"device": device}),
            **what_decides(threads),
        }
    )


def _by_metric(step: Step) -> bool:
    """Whether the metric decides what a step gives: by a bound on the drop, or by when a training stops."""
    training: Training | None = getattr(step, "training", None) or getattr(step, "recovery", None)
    patient = training is not None and training.patience is not None
    return patient or getattr(step, "max_drop", None) is not None


def apply_plan(store: Store, parent: str, plan: Plan, context: Context) -> str:
    """Compress an artifact and return the digest of the result; the parent is not changed.

    Each prefix of the plan is a stage in the store, so plans that begin alike share what they have in
    common (a pruned and recovered parent), a killed run goes on after its last finished step, and two
    processes compute a step once.

    Args:
        store: where the parent is and results go.
        parent: digest of the artifact to compress.
        plan: steps in rising order; an empty plan gives the parent.
        context: data, seed and threads.

    Raises:
        CompressionError: the plan or one of its steps does not fit the parent.
        ModelError: an imported model's factory is not allowed.
    """
    origin = store.manifest(parent)
    check_plan(plan if plan and isinstance(plan[0], Distill) else [*origin.plan, *plan])
    data = context.data if context.data is not None else origin.data
    plan = _by_digest(store, plan)
    digest = parent
    for end in range(1, len(plan) + 1):
        key = plan_key(
            parent, plan[:end], data, context.seed, context.threads, context.metric, context.device
        )
        own = after_epochs(context, epochs_of(plan[: end - 1]))
        digest = store.stage(key, _Job(store, key, parent, digest, plan[end - 1], own, data))
    return digest


@dataclass(frozen=True)
class _Job:
    """One step on the artifact of the steps before it."""

    store: Store
    key: str
    """Of the stage that it computes."""
    parent: str
    before: str
    step: Step
    context: Context
    data: str

    def __call__(self) -> str:
        store, context = self.store, self.context
        previous = rebuild(store, self.before, allowed=context.allowed)
        manifest = previous.manifest
        state = State(
            previous.module,
            manifest.signature,
            parent=self._build(self.parent),
            parent_outputs=self._outputs(self.parent),
            model=manifest.model,
            plan=manifest.plan,
            decisions=manifest.decisions,
            sparse=_trained_sparse(manifest),
        )
        checkpoint = Checkpoint(store, self.key)
        try:
            state = run_step(self.step, state, replace(context, other=self._other, checkpoint=checkpoint))
        except (Stopped, CompressionError, TrainingError):  # it would end so again
            checkpoint.forget()
            raise
        assert state.model is not None
        draft = Draft(
            model=state.model,
            signature=manifest.signature,
            plan=state.plan,
            decisions=state.decisions,
            parents=(self.parent, *others_of(self.step)),
            data=self.data,
            seed=context.seed,
            what={**manifest.what, "compression": what_decides(context.threads, context.device)},
        )
        digest = store.put_artifact(draft, tensors_of(state.module))
        keep_form(draft, state.module)
        checkpoint.forget()
        return digest

    def _other(self, digest: str) -> Other:
        parent = self.store.manifest(self.parent).signature
        if self.store.has_spec(digest):
            spec = self.store.spec(digest)
            check_same_answers(spec.name, spec.signature, parent)
            return as_other(spec, self._cached)
        check_same_answers(digest, self.store.manifest(digest).signature, parent)
        return Other(self._build(digest), self.store.manifest(digest).model, self._outputs(digest))

    def _build(self, digest: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            self._refuse_int8(digest)
            return rebuild(self.store, digest, allowed=self.context.allowed).module

        return build

    def _outputs(self, digest: str) -> ParentOutputs:
        def outputs(training: Training) -> Views:
            self._refuse_int8(digest)
            return self._cached(digest, training)

        return outputs

    def _refuse_int8(self, digest: str) -> None:
        """A member of an ensemble may be one: there is no other that answers as the ensemble does."""
        if any(isinstance(step, StaticInt8 | DynamicInt8) for step in self.store.manifest(digest).plan):
            raise CompressionError(
                "an int8 model can neither teach nor be merged",
                digest,
                "name the float model it was made from",
            )

    def _cached(self, digest: str, training: Training) -> Views:
        context = self.context
        if context.train is None:
            raise CompressionError("distillation needs train rows", fix="give the data a train part")
        cache = TeacherCache(
            store=self.store,
            digest=digest,
            data=self.data,
            rows=context.train,
            task=self.store.manifest(digest).signature.task,
            training=training,
            seed=context.seed,
            threads=context.threads,
            device=context.device,
        )
        cache.fill(lambda: rebuild(self.store, digest, allowed=context.allowed).module)
        return cache.outputs()


def _trained_sparse(manifest: Manifest) -> bool:
    """Whether its training set weights to zero, and they are still its own."""
    training = manifest.what.get("training") or {}
    return training.get("sparsify") is not None and not any(
        isinstance(step, Distill | Merge) for step in manifest.plan
    )


def _by_digest(store: Store, plan: Plan) -> Plan:
    """The plan with all that it names by ref named by digest: a ref may move."""
    return tuple(with_others(step, store.resolve) for step in plan)


def what_decides(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Threads, library version and instruction set: with them the steps give the same bits.

    So does the GPU on which a step trained.
    """
    card = {"device": torch.cuda.get_device_name(device)} if device != "cpu" else {}
    return {
        **card,
        "threads": threads,
        **here(),
    }


def here() -> dict[str, str]:
    """Of this machine and its libraries, what decides the bits of a result."""
    found = {"torch": torch.__version__, "isa": torch.backends.cpu.get_cpu_capability()}
    # AVX-512 comes with VNNI and without, and int8 then has 8 bits or 7.
    return found | ({"int8": "7 bits"} if reduce_range() else {})
