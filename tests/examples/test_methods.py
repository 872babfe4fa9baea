"""The examples show every compression step as a run file has it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from orchestrator.config.load import load_run
from orchestrator.config.steps import Recovery, Step

FOLDER = Path(__file__).parents[2] / "examples"
VARIANTS = [
    variant for name in ("methods", "text") for variant in load_run(FOLDER / f"{name}.yaml").variants.values()
]


def test_every_step_has_an_example() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Step)[0])}
    assert {step.kind for variant in VARIANTS for step in variant.plan} == kinds


def test_so_has_all_that_a_recovery_asks_of_weights() -> None:
    trainings = [step.training for variant in VARIANTS for step in variant.plan if isinstance(step, Recovery)]
    for key in ("sparsify", "penalty", "clip_weights"):
        assert any(getattr(training, key) is not None for training in trainings), key
