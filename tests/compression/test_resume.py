"""Steps that train and are killed go on after their last epoch, in a process of the same seed, bit-equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.compression.plan import State, run_step
from orchestrator.compression.step import Other
from orchestrator.config.steps import ChannelPruning, Merge, Qat, Step
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.state import EpochReport
from tests.compression import toys

EPOCHS = 3
TRAINING = Training(epochs=EPOCHS, batch_size=16, lr=0.02, loss=DistillationLoss())
LABELS = TRAINING.model_copy(update={"loss": None})


class Killed(BaseException):
    """As a signal: nothing of the step's own catches it."""


def rounds(criterion: str) -> ChannelPruning:
    return ChannelPruning.model_validate(
        {"amount": 0.5, "criterion": criterion, "rounds": 3, "recovery": TRAINING.plain()}
    )


STEPS: dict[str, tuple[Step, int]] = {
    "qat": (Qat(training=TRAINING), EPOCHS),
    "qat, the best epoch": (Qat(training=TRAINING.model_copy(update={"patience": 2})), EPOCHS),
    "qat of weights": (Qat(to="int4_weight_only", training=TRAINING), EPOCHS),
    "rounds": (rounds("l2"), 2 * EPOCHS),
    "rounds by gradients": (rounds("taylor"), 2 * EPOCHS),
    "rounds by chance": (rounds("random"), 2 * EPOCHS),
    "side by side": (
        Merge(others=("other",), method="side_by_side", training=LABELS, max_barrier=99.0),
        EPOCHS,
    ),
}
"""Each with the epochs that it trains in all."""


def run(step: Step, checkpoint: Checkpoint, die_after: int | None = None) -> tuple[State, int]:
    """The step on a toy net, as a new process would run it; and the epochs that it trained."""
    module, signature, _ = toys.toy("resnet")
    told: list[EpochReport] = []

    def on_epoch(report: EpochReport) -> None:
        told.append(report)
        if len(told) == die_after:
            raise Killed

    context = toys.context(
        signature.input_shape,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        other=lambda _: Other(lambda: toys.near(module), None),
    )
    return run_step(step, toys.state(module, signature), context), len(told)


@pytest.mark.parametrize("name", STEPS)
def test_a_killed_step_goes_on_bit_equal(name: str, tmp_path: Path) -> None:
    step, epochs = STEPS[name]
    store = Store(tmp_path / "store")
    whole, trained = run(step, Checkpoint(store, "whole"))
    assert trained == epochs
    # In the first epoch of the last training, and after the first epoch of all.
    for dead in {1, epochs - EPOCHS + 1}:
        kept = Checkpoint(store, f"killed-{dead}")
        with pytest.raises(Killed):
            run(step, kept, die_after=dead)
        again, trained = run(step, kept)
        assert trained == epochs - dead
        assert again.decisions == whole.decisions
        wanted, found = whole.module.state_dict(), again.module.state_dict()
        assert list(wanted) == list(found)
        assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []


def test_what_is_kept_of_every_round_is_forgotten_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = Checkpoint(store, "work")
    run(STEPS["rounds"][0], kept)
    folders: set[Any] = {key.split("/")[2] for key in store.blobs.list("checkpoints")}
    assert folders == {"round-1", "round-2"}
    kept.forget()
    assert store.blobs.list("checkpoints") == []
