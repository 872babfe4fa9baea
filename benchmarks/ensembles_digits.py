"""Four models of `examples/digits.yaml`, trained here in about a minute: a part of `benchmarks.ensembles`."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.ensembles_bench import TEAM, THREADS, Bench
from orchestrator.config.data import PartName
from orchestrator.config.load import load_run
from orchestrator.data.load import default_cache, load
from orchestrator.models.build import build
from orchestrator.store.store import Store
from orchestrator.training.loop import train

RUN_FILE = Path(__file__).resolve().parents[1] / "examples" / "digits.yaml"
PARTS: tuple[PartName, ...] = ("validation", "calibration", "test")
BATCH = 256


def digits(store: Store) -> Bench:
    """The models under the names of the team, and what they say of the digits' rows; nothing is stored."""
    config = load_run(RUN_FILE, [])
    data = load(config.data, seed=config.seed, cache=default_cache())
    bench = Bench(config, store, data, {part: {} for part in PARTS})
    for name, entry in zip(TEAM, config.models.values(), strict=True):
        assert entry.model is not None
        module = build(entry.model, data.signature, seed=config.seed)
        reports = train(
            module,
            data.part("train"),
            data.part("validation"),
            entry.training,
            signature=data.signature,
            metric=config.metric,
            seed=config.seed,
            threads=THREADS,
        )
        for _ in reports:
            pass
        module.eval()
        for part, outputs in bench.said.items():
            with torch.no_grad():
                rows = torch.tensor(data.part(part).inputs).split(BATCH)
                outputs[name] = torch.cat([module(some) for some in rows]).numpy()
    return bench
