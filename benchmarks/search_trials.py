"""Trials of `benchmarks.search`: they sleep, or burn, and keep a made-up outcome. Nothing heavy is imported
here, so that sixteen workers start fast."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.base import fingerprint
from orchestrator.store.store import Store

SHARED = ("store", "each_s", "spread", "gate", "workers")


def length_s(config: Mapping[str, Any], each_s: float, spread: float) -> float:
    """How long a trial sleeps: `each_s`, or evenly spread around it by as much as this share of it."""
    return each_s * random.Random(fingerprint(dict(config))).uniform(1 - spread, 1 + spread)


def key_of(config: Mapping[str, Any]) -> str:
    """Of the stage that holds a trial's outcome."""
    return fingerprint({"stage": "sleeping trial", "config": dict(config)})


def sleep_and_keep(config: dict[str, Any]) -> dict[str, float]:
    """Sleep, then keep an outcome as a stage of the store, like a real trial."""
    store, each_s, spread, gate, workers = (config[name] for name in SHARED)
    _together(gate, workers)
    own = {name: value for name, value in config.items() if name not in SHARED}
    time.sleep(length_s(own, each_s, spread))
    outcome = Store(store).stage_value(key_of(own), lambda: _outcome(own))
    return {"succeeded": float("failure" not in outcome)}


def sleep_only(config: dict[str, Any]) -> dict[str, float]:
    """What a user of Tune would write to sleep."""
    _together(config["gate"], config["workers"])
    time.sleep(config["each_s"])
    return {"score": config["x"]}


def _together(gate: str, workers: int) -> None:
    """Wait until this many processes came here, so that all begin their first trial at one moment."""
    if workers:
        Path(gate, str(os.getpid())).touch()
        while len(os.listdir(gate)) < workers:
            time.sleep(0.05)


def _outcome(config: Mapping[str, Any]) -> dict[str, Any]:
    """More pruning loses more and takes fewer bytes; a few variants cannot be built."""
    amount = float(config["prune_channels.amount"])
    if config["precision"] == "int8_dynamic" and amount > 0.85:
        return {"failure": "no linear layer is left"}
    luck = random.Random(fingerprint(dict(config))).uniform(-0.005, 0.005)
    return {"metric": 0.9 - amount**3 / 10, "drop": amount**3 / 10 + luck, "bytes": round(1e6 * (1 - amount))}


def burn_and_keep(config: dict[str, Any]) -> dict[str, float]:
    """Keep a core busy as long as `sleep_and_keep` sleeps, then keep an outcome."""
    own = {name: value for name, value in config.items() if name not in SHARED}
    square = np.random.default_rng(0).standard_normal((256, 256))
    until = time.monotonic() + length_s(own, config["each_s"], config["spread"])
    while time.monotonic() < until:
        np.tanh(square @ square)
    outcome = Store(config["store"]).stage_value(key_of(own), lambda: _outcome(own))
    return {"succeeded": float("failure" not in outcome)}
