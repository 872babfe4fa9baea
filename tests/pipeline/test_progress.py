"""What a run tells about its training while it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.pipeline.watching import event_text
from orchestrator.training.state import EpochReport
from tests.pipeline.tiny import config


def test_an_epoch_says_how_long_the_rest_will_take() -> None:
    run: Any = SimpleNamespace(config=config(port=1))
    first = event_text(run, "teacher", EpochReport(0, 0.5, 0.9, 0.1, 300.0))
    assert first == "epoch 1 of 3, loss 0.5000, validation accuracy 0.9000, 300.0 s, about 10 min left"
    assert "left" not in event_text(run, "teacher", EpochReport(0, 0.5, 0.9, 0.1, 20.0)), "under a minute"
    assert "left" not in event_text(run, "teacher", EpochReport(2, 0.5, 0.9, 0.1, 300.0)), "the last one"
