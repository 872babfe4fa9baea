"""A state saved within an epoch goes on bit-equal, and a training that hangs is ended with its place told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config.measure import Metric
from orchestrator.config.training import Training
from orchestrator.training.loop import train
from orchestrator.training.randomness import random_states, restore
from orchestrator.training.state import EpochReport, TrainState
from orchestrator.training.watch import HangGuard, forget_hang, hung_at, trace_file
from tests.training.toy import FEATURES, part

TRAINING = Training(epochs=3, batch_size=16, lr=0.05)
STEPS = 13
"""An epoch of 200 rows."""


class Saving:
    """Asks for the state after a step, once, and keeps it as a file would."""

    def __init__(self, folder: Path, at: int, stop: bool) -> None:
        self.folder, self.left, self.stop = folder, at, stop
        self.saved: TrainState | None = None

    def step(self) -> bool:
        self.left -= 1
        return self.left == 0

    def save(self, state: TrainState) -> None:
        state.save(self.folder)
        self.saved = TrainState.load(self.folder)
        if self.stop:
            raise KeyboardInterrupt


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def run(settings: Training, state: TrainState, **more: Any) -> Iterator[EpochReport]:
    rows, validation = part(FEATURES, 200), part(FEATURES, 60, seed=1)
    return train(
        network(),
        rows,
        validation,
        settings,
        signature=FEATURES,
        metric=Metric(),
        seed=3,
        threads=1,
        state=state,
        **more,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [5, 14, 25])
def test_a_state_within_an_epoch_goes_on_bit_equal(tmp_path: Path, optimizer: str, at: int) -> None:
    settings = TRAINING.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    calm = TrainState()
    curve = list(run(settings, calm))

    watch = Saving(tmp_path / "state", at, stop=True)
    with pytest.raises(KeyboardInterrupt):
        list(run(settings, TrainState(), watch=watch))
    state = TrainState.load(tmp_path / "state")
    assert (state.epoch, state.step) == divmod(at, STEPS)
    begun = state.epoch
    again = list(run(settings, state))
    assert [(r.epoch, r.loss, r.metric) for r in again] == [
        (r.epoch, r.loss, r.metric) for r in curve[begun:]
    ]
    assert calm.weights.keys() == state.weights.keys()
    assert all(torch.equal(calm.weights[name], state.weights[name]) for name in calm.weights)
    assert (state.step, state.begun) == (0, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_so_does_one_on_a_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda:0")
    calm = TrainState()
    curve = list(run(TRAINING, calm, device=device))
    with pytest.raises(KeyboardInterrupt):
        list(run(TRAINING, TrainState(), watch=Saving(tmp_path, 5, stop=True), device=device))
    state = TrainState.load(tmp_path)
    assert [report.loss for report in run(TRAINING, state, device=device)] == [r.loss for r in curve]
    assert all(torch.equal(calm.weights[name], state.weights[name]) for name in calm.weights)


def test_generators_of_a_gpu_are_kept_beside_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a GPU: its generator is a tensor that is asked for and given back."""
    device, own = torch.device("cuda:0"), {"cuda:0": torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: own[str(device)].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: own.update({str(device): state}))
    kept = random_states(device, world=1)
    expected = torch.rand(3)
    own["cuda:0"] = torch.zeros(16, dtype=torch.uint8)
    restore(kept, device, rank=0)
    assert torch.equal(own["cuda:0"], torch.arange(16, dtype=torch.uint8))
    assert torch.equal(torch.rand(3), expected)
    assert random_states(torch.device("cpu"), world=1).keys() == {"random0"}


def test_saving_changes_nothing_of_a_run_that_goes_on(tmp_path: Path) -> None:
    calm, watched = TrainState(), TrainState()
    curves = [
        [report.loss for report in run(TRAINING, calm)],
        [report.loss for report in run(TRAINING, watched, watch=Saving(tmp_path, 7, stop=False))],
    ]
    assert curves[0] == curves[1]
    assert all(torch.equal(calm.weights[name], watched.weights[name]) for name in calm.weights)


@pytest.mark.parametrize(
    "changed",
    [
        {"sparsify": {"amount": 0.5}},
        {"lookahead": {}},
        {"clip_weights": {}},
    ],
    ids=["sparsify", "lookahead", "clip_weights"],
)
def test_what_keeps_more_between_steps_waits_for_the_epochs_end(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = Training.model_validate({**TRAINING.plain(), **changed})
    watch = Saving(tmp_path, 7, stop=True)
    assert len(list(run(settings, TrainState(), watch=watch))) == 3
    assert watch.saved is None


def hang(folder: str, how: str) -> None:
    """Runs in a process of its own: a guard, some steps, then nothing."""
    guard = HangGuard(0.6, trace_file(Path(folder), 0))
    for _ in range(4):
        guard.step()
    if how == "ends":
        guard.close()
        return
    stuck_here()


def stuck_here() -> None:
    import time

    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_a_process_that_hangs_is_ended(tmp_path: Path, how: str) -> None:
    code = f"from tests.training.test_watch import hang; hang({str(tmp_path)!r}, {how!r})"
    found = subprocess.run([sys.executable, "-c", code], timeout=50, check=False, capture_output=True)
    if how == "ends":
        assert found.returncode == 0, found.stderr
        assert list(tmp_path.iterdir()) == []
        assert hung_at(tmp_path) is None
        return
    assert found.returncode == 1
    place = hung_at(tmp_path)
    assert place is not None
    assert place.startswith("training/test_watch.py:")
    assert place.endswith("in stuck_here")
    forget_hang(tmp_path)
    assert hung_at(tmp_path) is None


def test_the_thread_that_trains_is_told(tmp_path: Path) -> None:
    trace_file(tmp_path, 1).write_text(
        "Timeout (0:00:03)!\nThread 0x01 (most recent call first):\n"
        '  File "/x/ray/worker.py", line 5 in wait\n\n'
        'Thread 0x02 (most recent call first):\n  File "/x/own/loss.py", line 7 in forward\n'
        '  File "/x/orchestrator/training/loop.py", line 230 in _learn\n',
        encoding="utf-8",
    )
    assert hung_at(tmp_path) == "own/loss.py:7 in forward"
