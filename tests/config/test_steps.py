"""What steps mean that say only a part."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.steps import PLAN
from orchestrator.config.training import DistillationLoss

STUDENT = {"model": {"factory": "mlp"}}


def trained(**step: Any) -> Any:
    return getattr(PLAN.validate_python([step])[0], "training")  # noqa: B009


@pytest.mark.parametrize(
    ("step", "own"),
    [
        ({"kind": "recover"}, (3, 0.02, "distillation")),
        ({"kind": "qat"}, (2, 0.005, "distillation")),
        ({"kind": "distill", **STUDENT}, (20, 0.1, "distillation")),
        ({"kind": "merge", "others": ["a"]}, (2, 0.01, None)),
    ],
)
def test_what_a_training_leaves_open_is_the_steps_own(
    step: dict[str, Any], own: tuple[int, float, str | None]
) -> None:
    for training in ({}, {"batch_size": 32}):
        found = trained(**step, training=training)
        assert (found.epochs, found.lr, found.loss and found.loss.kind) == own
    assert trained(**step) == trained(**step, training={})
    assert trained(**step, training={"lr": 0.3}).lr == 0.3


def test_a_training_that_is_written_out_stays_as_it_is() -> None:
    """Plain values of manifests and keys: `loss: null` there was trained from labels."""
    for loss in (None, DistillationLoss(temperature=2.0)):
        (step,) = PLAN.validate_python([{"kind": "recover", "training": {"lr": 0.1, "loss": loss}}])
        assert PLAN.validate_python([step.plain()]) == (step,)
        assert step.plain()["training"]["loss"] == (loss and loss.plain())
    labels = {"loss": {"kind": "cross_entropy"}}
    assert trained(kind="qat", training=labels).loss.kind == "cross_entropy"


def test_training_of_a_merged_head_is_a_steps() -> None:
    with pytest.raises(ValueError, match="'snapshots'"):
        trained(kind="merge", others=["a"], training={"epochs": 4, "snapshots": 2})
