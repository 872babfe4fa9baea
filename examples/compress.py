"""Compress a module of your own from Python, without Ray or a run file.

`python examples/compress.py [FOLDER]`; the exported model goes to FOLDER, `runs` when not given.

Trains a small network on the embedded digits, halves its channels, recovers by distillation from the whole
network, and quantizes to int8; then says what that really did, and whether it keeps a promise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from orchestrator.compression import compress
from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Cnn
from orchestrator.config.search import Promise
from orchestrator.config.training import Augment, Training
from orchestrator.data.load import default_cache, load
from orchestrator.models.build import build
from orchestrator.training.loop import train

RECOVERY = {"epochs": 5, "batch_size": 64, "lr": 0.05, "loss": {"kind": "distillation"}}
PLAN: list[dict[str, Any]] = [
    {"kind": "prune_channels", "amount": 0.5},
    {"kind": "recover", "training": RECOVERY},
    {"kind": "int8_static"},
]


def main(folder: Path) -> None:
    """Train, compress, audit, test the promise, export."""
    data = load(EmbeddedData(name="digits"), seed=7, cache=default_cache())
    parts = data.parts
    module = build(Cnn(), data.signature, seed=7)
    recipe = Training(epochs=8, batch_size=64, lr=0.05, augment=Augment(crop=1))
    for report in train(
        module,
        parts["train"],
        parts["validation"],
        recipe,
        signature=data.signature,
        metric=Metric(),
        seed=7,
    ):
        print(report)

    variant = compress(module.eval(), PLAN, data)
    print(variant.audit())

    contract = parts["contract"]
    print(variant.promise(contract.inputs, contract.targets, Promise(max_drop=0.03)).reason)
    folder.mkdir(parents=True, exist_ok=True)
    print("exported to", variant.export(folder / "digits-small.pt2"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
