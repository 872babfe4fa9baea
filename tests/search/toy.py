"""A trial that needs no torch: its worker starts in a second."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from orchestrator.config.base import fingerprint


def toy_trial(config: dict[str, Any]) -> dict[str, float]:
    """Sleeps for a random time, leaves its outcome in a file; some fail, some die once.

    `dies` and `dies_after` of the config are precisions of which every process dies, before it has an outcome
    or after.
    """
    folder, dies, dies_after = (config.pop(name, "") for name in ("folder", "dies", "dies_after"))
    folder = Path(folder)
    with (folder / f"{config['precision']}.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(random.Random(os.urandom(4)).uniform(0, 0.3))
    started = folder / f"{fingerprint(config)}.started"
    died = started.exists()
    started.touch()
    if config["precision"] == dies:
        os._exit(1)
    amount = float(config.get("prune_channels.amount", 0))
    if config["precision"] == "int8_dynamic" and amount == 0:
        raise ValueError("no linear layer is left")
    if config["precision"] == "int8_static" and amount == 0 and not died:
        os._exit(1)
    outcome: dict[str, Any] = {"digest": "ab" * 32, "metric": 0.9, "drop": 0.05 * amount**2, "bytes": 100}
    if config["precision"] == "fp32" and amount == 0.25:
        outcome = {"failure": "cannot be pruned"}
    (folder / f"{fingerprint(config)}.json").write_text(json.dumps(outcome))
    if config["precision"] == dies_after:
        os._exit(1)
    return {"ended": 1.0}
