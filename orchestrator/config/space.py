"""A space of plans: a plan in which any value, and any step, may be one of several.

    plan:
      - choice:                                     # a step, several steps, or null for none
          - null
          - - {kind: prune_channels, amount: {range: [0.1, 0.6], step: 0.1}}
            - {kind: recover, training: {loss: {kind: distillation, temperature: {choice: [1, 4]}}}}
      - choice: [null, {kind: bf16}, {kind: int8_static}]

A free value is named after its place (`prune_channels.amount`) unless it has a `name`. What is free and how
it is walked through stands in `config/free.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import get_args

from pydantic import JsonValue, ValidationError, field_validator, model_validator

from orchestrator.config.distillation import Distill
from orchestrator.config.free import (
    Choice,
    Config,
    Parameter,
    Pick,
    Range,
    Scalar,
    Template,
    complete,
    distinct,
    filled,
    first_complaint,
    grid,
    named,
    option_at,
    parameters,
    probes,
    read,
    rounded,
    shown,
    value_of,
)
from orchestrator.config.merging import Merge
from orchestrator.config.quantization import Precision, Qat
from orchestrator.config.steps import PLAN, Plan, Recovery, first_out_of_order, precision_of

__all__ = [
    "Choice",
    "Config",
    "Parameter",
    "Pick",
    "Range",
    "Scalar",
    "Space",
    "complete",
    "every_precision",
    "grid",
    "leaves_open",
    "named",
    "parameters",
    "plan_of",
    "probes",
    "rounded",
]

_PRECISIONS = frozenset(get_args(Precision))
_OWN = {
    step.model_fields["kind"].default: step.model_fields["training"].default.model_fields_set
    for step in (Distill, Merge, Qat, Recovery)
}
"""What the own training of each kind of step says."""


class Space(Template):
    """What a trial may choose."""

    plan: tuple[JsonValue, ...] = (
        {
            "choice": [
                None,
                [
                    {
                        "kind": "prune_channels",
                        "amount": {"choice": [0.25, 0.5]},
                        "criterion": {"choice": ["l2", "lamp", "fpgm"]},
                    },
                    {"kind": "recover"},
                ],
            ]
        },
        {"choice": [None, {"kind": "bf16"}, {"kind": "int8_static"}, {"kind": "int8_dynamic"}]},
    )
    """Steps in their order, as in a variant's plan; `{choice: [...]}` or `{range: [low, high]}` may stand
    for any value in them, `{choice: [...]}` for a whole step."""

    def walk(self, pick: Pick) -> list[JsonValue]:
        """The plan with every free value as `pick` chose it, as plain values, in the order of the file.

        Raises:
            ValueError: a free value is written wrongly.
        """
        steps: list[JsonValue] = []
        for place, item in enumerate(self.plan):
            found = _step(item, f"step {place + 1}", pick)
            steps += [step for step in (found if isinstance(found, list) else [found]) if step is not None]
        return steps

    @field_validator("plan", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, dict):
            raise ValueError("the plan of a space is a list of steps: put '- ' before it")
        return value

    @model_validator(mode="after")
    def _every_plan_is_one(self) -> Space:
        for config in probes(self):
            try:
                plan = plan_of(self, config)
            except ValidationError as error:
                raise ValueError(first_complaint(error, config)) from error
            if (pair := first_out_of_order(plan)) is not None:
                raise ValueError(
                    f"'{pair[1].kind}' cannot follow '{pair[0].kind}' in a plan (with {shown(config)})"
                )
        return self


def plan_of(space: Space, config: Mapping[str, Scalar]) -> Plan:
    """The plan that a config stands for; empty when it changes nothing.

    Raises:
        KeyError: the config lacks a free value that it needs.
        ValidationError: the space allows values that the step does not.
    """
    return PLAN.validate_python(filled(space, config))


def every_precision(space: Space) -> list[Precision]:
    """The number types that plans of the space end in, in the order of its options."""
    return list(dict.fromkeys(precision_of(plan_of(space, config)) for config in probes(space)))


def _step(item: JsonValue, place: str, pick: Pick) -> JsonValue:
    """One item of the plan: a step, or a choice among steps, lists of steps and null."""
    if isinstance(item, list):
        return list(itertools.chain(*(_listed(_step(one, place, pick)) for one in item)))
    if isinstance(item, dict) and "choice" in item:
        free = read(Choice, item, place)
        name = free.name or _name_of_steps(free.choice)
        labels = distinct(tuple(_label_of_steps(option, name) for option in free.choice))
        label = pick(Parameter(name, labels, of_steps=True))
        return _step(free.choice[option_at(labels, label, name)], place, pick)
    if item is None:
        return None
    if not (isinstance(item, dict) and isinstance(item.get("kind"), str)):
        raise ValueError(f"{place} of the plan must be a step with a 'kind', a choice or null, got {item!r}")
    return value_of(item, str(item["kind"]), pick)


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _kinds(option: JsonValue) -> list[str]:
    """Of the steps of an option, those behind a further choice left out."""
    steps = [step for step in _listed(option) if isinstance(step, dict)]
    return [str(step["kind"]) for step in steps if "kind" in step]


def _name_of_steps(options: tuple[JsonValue, ...]) -> str:
    kinds = [kind for option in options for kind in _kinds(option)]
    if kinds and set(kinds) <= _PRECISIONS:
        return "precision"
    return kinds[0] if kinds else "steps"


def _label_of_steps(option: JsonValue, name: str) -> str:
    if option is None or option == []:
        return "fp32" if name == "precision" else "none"
    return "+".join(_kinds(option)) or "steps"


def leaves_open(value: JsonValue) -> bool:
    """Whether the `training` of some step in it does not say all that the step's own says."""
    if isinstance(value, list):
        return any(leaves_open(inner) for inner in value)
    if not isinstance(value, dict):
        return False
    own, training = _OWN.get(str(value.get("kind")), set()), value.get("training")
    choice = training.get("choice") if isinstance(training, dict) else None
    given = choice if isinstance(choice, list) else [training]
    if any(isinstance(one, dict) and not own <= set(one) for one in given):
        return True
    return any(leaves_open(inner) for inner in value.values())
