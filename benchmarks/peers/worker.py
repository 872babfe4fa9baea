"""What the process of every peer does: load a model once, then answer requests, a JSON line each.

A peer's own clock times its calls, so that the pipe between the processes is in no figure. Nothing here needs
more than numpy: peers live in environments of their own.

The folder of a peer holds `model.onnx` (float32, any batch size, raw uint8 rows in, logits out), `model.pt2`
(the same as a `torch.export` program), `scaling.pt2` and `network.pt2` (its two parts), and `calibration.npy`
and `test.npy`, raw rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[Any]]
Model = Callable[[Rows], Rows]
"""Raw rows of its batch size -> logits."""
Load = Callable[[Path, int], Model]
"""From the folder and a batch size to a model of one thread, ready to run."""

ANSWER = "answer: "
"""Begins an answer: libraries print on the same stream."""
WARM_UP_S = 0.5


def serve(load: Load) -> None:
    """Answer `predict`, `warm` and `block` requests until standard input ends."""
    folder = Path(sys.argv[1])
    test = np.load(folder / "test.npy")
    models: dict[int, Model] = {}
    repeats: dict[int, int] = {}
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        batch = int(request["batch"])
        if batch not in models:
            models[batch] = load(folder, batch)
        model, rows = models[batch], test[:batch]
        if request["do"] == "predict":
            np.save(request["path"], predict(model, test, batch))
            answer: dict[str, Any] = {}
        elif request["do"] == "warm":
            repeats[batch] = warm(model, rows, float(request["block_ms"]))
            answer = {"calls": repeats[batch]}
        else:
            answer = {"times_ms": [_time(model, rows) for _ in range(repeats[batch])]}
        print(ANSWER + json.dumps(answer), file=answers, flush=True)


def predict(model: Model, rows: Rows, batch: int) -> Rows:
    """Logits of all rows; the last batch is filled up, since a peer's model may take one size only."""
    parts = []
    for start in range(0, len(rows), batch):
        piece = rows[start : start + batch]
        padded = np.concatenate([piece, np.repeat(rows[:1], batch - len(piece), axis=0)])
        parts.append(np.asarray(model(padded), np.float32)[: len(piece)])
    return np.concatenate(parts)


def warm(model: Model, rows: Rows, block_ms: float) -> int:
    """Call until the pace is steady; returns the calls that fill a block."""
    times: list[float] = []
    while sum(times) < 1e3 * WARM_UP_S or len(times) < 3:
        times.append(_time(model, rows))
    return max(1, round(block_ms / float(np.median(times[len(times) // 2 :]))))


def _time(model: Model, rows: Rows) -> float:
    start = time.perf_counter()
    model(rows)
    return (time.perf_counter() - start) * 1e3
