"""Four models of `examples/digits.yaml`, trained here in about a minute: a part of `benchmarks.ensembles`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.ensembles_bench import TEAM, THREADS, Bench, Outputs
from orchestrator.config.data import PartName
from orchestrator.config.load import load_run
from orchestrator.config.run import ModelEntry, RunConfig
from orchestrator.data.dataset import Dataset
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
    said = [trained(config, data, entry, PARTS) for entry in config.models.values()]
    by_part: dict[PartName, Outputs] = {
        part: {name: of[part] for name, of in zip(TEAM, said, strict=True)} for part in PARTS
    }
    return Bench(config, store, data, by_part)


def trained(config: RunConfig, data: Dataset, entry: ModelEntry, parts: Sequence[PartName]) -> Outputs:
    """Train a model in this process on one thread, and ask it for all rows of some parts.

    Returns:
        By part: logits [N, K].
    """
    assert entry.model is not None
    module = build(entry.model, data.signature, seed=config.seed_of(entry))
    reports = train(
        module,
        data.part("train"),
        data.part("validation"),
        entry.training,
        signature=data.signature,
        metric=config.metric,
        seed=config.seed_of(entry),
        threads=THREADS,
    )
    for _ in reports:
        pass
    module.eval()
    with torch.no_grad():
        return {
            part: torch.cat(
                [module(some) for some in torch.tensor(data.part(part).inputs).split(BATCH)]
            ).numpy()
            for part in parts
        }
