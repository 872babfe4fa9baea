"""Names and seeds of models that one entry of the run file stands for."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

from orchestrator.config.base import fingerprint


def nth_seed(seed: int, number: int) -> int:
    """Seed of model `number`, from 1, of a group: the first has the group's own."""
    return seed if number == 1 else int(fingerprint([seed, number])[:8], 16) >> 1


def name_of(group: str, number: int) -> str:
    """Name of model `number`, from 1, of a group."""
    return f"{group}-{number}"


def stage_names(ensemble: str, base: str, rounds: int) -> list[str]:
    """Names of the models that a boosting ensemble of this name is made of, in their order."""
    return [base, *(name_of(ensemble, number) for number in range(2, rounds + 1))]


def fold_name(model: str, fold: int, folds: int) -> str:
    """Name of a model's training without one fold of its train rows; folds are counted from 0."""
    return f"{model}-fold-{fold + 1}-of-{folds}"


def named_by(name: str, models: Collection[str]) -> list[str]:
    """Models `<name>-1`, `<name>-2`, ... as far as they go; empty when there are none."""
    numbered = (name_of(name, number) for number in itertools.count(1))
    return list(itertools.takewhile(lambda one: one in models, numbered))


def with_groups(tree: Any, models: Collection[str], taken: Collection[str]) -> Any:
    """An ensemble's plain values in which the name of a group, as a member, stands for all of its models.

    Args:
        tree: as in the run file.
        models: names of all models.
        taken: names that are no group's.
    """
    if isinstance(tree, list):
        return [with_groups(part, models, taken) for part in tree]
    if not isinstance(tree, dict):
        return tree
    found = {key: with_groups(value, models, taken) for key, value in tree.items()}
    if isinstance(members := found.get("members"), list):
        found["members"] = [
            name
            for member in members
            for name in (isinstance(member, str) and member not in taken and named_by(member, models))
            or [member]
        ]
    return found
