"""torchao's `quantize_` to dynamic int8, then `torch.compile`, by its guide, with frozen constants.

https://docs.pytorch.org/ao/stable/workflows/inference.html: it swaps the layers of a module in memory, so the
network is built by this project; `artifact.json` says from which store.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["TORCHAO_FORCE_SKIP_LOADING_SO_FILES"] = "1"

import torch
import torch._inductor.config as inductor
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from benchmarks.peers.worker import Model, Rows, serve
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store


def quantized(folder: Path, batch: int, config: Any) -> Model:
    """The network in that form, compiled for one batch size."""
    torch.set_num_threads(1)
    inductor.freezing = True
    made = json.loads((folder / "artifact.json").read_text())
    module = rebuild(Store(made["store"], create=False), made["digest"]).module
    quantize_(module, config)
    compiled: Any = torch.compile(module, mode="max-autotune")

    def call(given: Rows) -> Rows:
        with torch.no_grad():
            out: Rows = compiled(torch.from_numpy(given)).numpy()
            return out

    call(torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8).numpy())
    return call


def load(folder: Path, batch: int) -> Model:
    """Int8 activations, a scale a row, and int8 weights."""
    return quantized(folder, batch, Int8DynamicActivationInt8WeightConfig())


if __name__ == "__main__":
    serve(load)
