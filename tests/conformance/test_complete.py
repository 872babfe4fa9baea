"""The tables that conformance runs over leave no kind of step or ensemble out."""

from __future__ import annotations

from typing import Any, get_args

from orchestrator.config.ensemble import Ensemble, walk_nodes
from orchestrator.config.steps import Step
from tests.conformance.test_steps import STEPS
from tests.conformance.trees import TREES


def _classes(kind: Any) -> set[type]:
    """Of a union, however it is nested and annotated."""
    return {kind} if isinstance(kind, type) else set().union(*map(_classes, get_args(kind)))


def test_every_step_has_an_entry() -> None:
    assert {type(step) for step in STEPS.values()} == _classes(Step)


def test_every_kind_of_ensemble_has_an_entry() -> None:
    found = {type(node) for tree in TREES.values() for node in walk_nodes(tree)}
    assert found >= _classes(Ensemble)
    assert len(_classes(Ensemble)) > 3
