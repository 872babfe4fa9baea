"""The whole main job in its smallest form, and how the tests that need it share one finished run."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.store.store import Store
from tests.search.spaces import small

MODELS = ("teacher", "small")
ENSEMBLES = {"average": "parallel", "mix": "weighted_mix", "cascade": "sequential"}
VARIANTS = ("thin", "pupil")
TRIALS = 4
REQUESTS = 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def values(port: int) -> dict[str, Any]:
    """Two models, a variant by hand, four trials in batches of two, three ensembles, a student of the second
    that the first one needs."""
    return {
        "name": "tiny",
        "seed": 3,
        "data": {
            "kind": "embedded",
            "limit": 600,
            "shares": {"train": 0.6, "validation": 0.15, "calibration": 0.1, "contract": 0.15},
        },
        "models": {
            "teacher": {
                "model": {"factory": "cnn", "kwargs": {"channels": [8, 16], "hidden": 32}},
                "training": {"epochs": 3, "batch_size": 64},
            },
            "small": {
                "model": {"factory": "mlp", "kwargs": {"widths": [32]}},
                "training": {"epochs": 2, "batch_size": 64},
            },
        },
        "variants": {
            "thin": {
                "parent": "teacher",
                "plan": [
                    {"kind": "prune_channels", "amount": 0.5},
                    {"kind": "recover", "training": {"epochs": 1, "loss": {"kind": "distillation"}}},
                ],
            },
            "pupil": {
                "parent": "small",
                "plan": [
                    {
                        "kind": "distill",
                        "model": {"factory": "mlp", "kwargs": {"widths": [16]}},
                        "ensemble": "mix",
                        "training": {"epochs": 1, "batch_size": 64, "loss": {"kind": "distillation"}},
                    }
                ],
            },
        },
        "search": {
            "parent": "teacher",
            "trials": TRIALS,
            "batch": 2,
            "space": small(
                training={"epochs": 1, "batch_size": 64, "loss": {"kind": "distillation"}}
            ).plain(),
            "arms": False,
            "executions": ["lowered", "eager"],
            "latency": {"blocks": 5, "block_ms": 2},
            "promise": {"max_drop": 0.5},
        },
        "ensembles": {
            "average": {"kind": "parallel", "members": ["teacher", "small", "thin", "pupil"]},
            "mix": {"kind": "weighted_mix", "members": ["chosen", "small"]},
            "cascade": {"kind": "sequential", "stages": ["fastest", "mix"]},
        },
        "latency": {"blocks": 5, "block_ms": 2},
        "serving": {"port": port, "requests": REQUESTS},
    }


def config(port: int) -> RunConfig:
    return validate(RunConfig, values(port), "tiny.yaml")


def write(path: Path, port: int) -> Path:
    path.write_text(yaml.safe_dump(values(port), sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Finished:
    """An undisturbed run."""

    config: RunConfig
    store: Store
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where summary and report are."""
        return self.store.root.parent / "tiny"


def results(summary: dict[str, Any]) -> dict[str, Any]:
    """What a repeated run must give again: all but its durations and what was served."""
    kept = {name: value for name, value in summary.items() if name not in ("seconds", "serving")}
    searched = {name: value for name, value in summary["search"].items() if name != "spent"}
    return {**kept, "search": searched}


def refs(store: Store) -> dict[str, str]:
    """Every name of the run and its digest: models, chosen, fastest, ensembles."""
    return {name: store.ref(name) for name in store.refs("tiny/")}
