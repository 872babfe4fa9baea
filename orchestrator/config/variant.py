"""Variants that a run file describes itself."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from orchestrator.config.base import Settings, absent
from orchestrator.config.measure import Execution
from orchestrator.config.search import Promise
from orchestrator.config.steps import EXECUTIONS, Distill, Plan, first_out_of_order, others_of, precision_of


class VariantEntry(Settings):
    """A variant that the file itself describes, beside those of the search."""

    parent: str
    """A model, or a variant above this one."""
    plan: Plan = Field(min_length=1)
    """Steps in rising order; `others` in a step are models or variants of this file, refs or digests, and
    `ensemble` is an ensemble of this file, a ref or a digest."""
    execution: Execution | None = None
    """lowered after int8, else eager, when not given."""
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, of its steps."""
    gpus: float = Field(0, ge=0)
    promise: Promise | None = Field(None, exclude_if=absent)
    """What is shown of it against its parent; that of the search, or the default, when not given. `looks`
    says nothing here: all variants are looked at, and share the confidence."""

    def needs(self) -> tuple[str, ...]:
        """Names and refs of all that it is made of."""
        return (self.parent, *(other for step in self.plan for other in others_of(step)))


def plan_complaint(variants: Mapping[str, VariantEntry]) -> str | None:
    """What is wrong with the plans of variants, each behind its parent's as far as the file tells, or None.

    Args:
        variants: by name, parents first.
    """
    whole: dict[str, Plan] = {}
    for name, entry in variants.items():
        # A student is a fresh model, whatever was done to its parent.
        before = () if isinstance(entry.plan[0], Distill) else whole.get(entry.parent, ())
        whole[name] = plan = (*before, *entry.plan)
        if (pair := first_out_of_order(plan)) is not None:
            steps = ", ".join(step.kind for step in plan)
            return f"{name}.plan: '{pair[1].kind}' cannot follow '{pair[0].kind}' in {steps}"
        precision = precision_of(plan)
        # Without a step of a number type it is that of the model, which may come from the store.
        if entry.execution not in (None, *EXECUTIONS[precision]) and precision != "fp32":
            possible = " or ".join(EXECUTIONS[precision])
            return f"{name}.execution: {precision} does not run {entry.execution}: use {possible}"
    return None
