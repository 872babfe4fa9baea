"""torchao's `quantize_` to int8 weights alone, otherwise as `torchao_dynamic`."""

from __future__ import annotations

from pathlib import Path

from torchao.quantization import Int8WeightOnlyConfig

from benchmarks.peers.torchao_dynamic import quantized
from benchmarks.peers.worker import Model, serve


def load(folder: Path, batch: int) -> Model:
    """Int8 weights, float activations."""
    return quantized(folder, batch, Int8WeightOnlyConfig())


if __name__ == "__main__":
    serve(load)
