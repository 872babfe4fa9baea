"""NNCF's post-training quantization, run by OpenVINO, by its guide: mixed preset, 300 calibration rows."""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import openvino as ov

from benchmarks.peers.openvino_bf16 import compiled
from benchmarks.peers.worker import Model, serve


def load(folder: Path, batch: int) -> Model:
    """The quantized model; what stays float is computed in bfloat16."""
    calibration = np.load(folder / "calibration.npy")[:300]
    rows = nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))])
    model = nncf.quantize(
        ov.Core().read_model(folder / "model.onnx"), rows, preset=nncf.QuantizationPreset.MIXED
    )
    return compiled(model, batch, ov.Type.bf16)


if __name__ == "__main__":
    serve(load)
