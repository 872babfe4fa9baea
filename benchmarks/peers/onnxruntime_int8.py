"""ONNX Runtime's static int8 by its guide for x86: QDQ, int8 weights a channel, pre-processed, one thread."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.worker import Model, Rows, serve


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: Rows, name: str) -> None:
        self._batches = iter([{name: rows[i : i + 16]} for i in range(0, len(rows), 16)])

    def get_next(self) -> dict[str, Rows] | None:
        return next(self._batches, None)


@functools.cache
def session(folder: Path) -> ort.InferenceSession:
    """The quantized model, for any batch size."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as scratch:
        prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        quant_pre_process(folder / "model.onnx", prepared)
        name = ort.InferenceSession(prepared, options).get_inputs()[0].name
        quantize_static(
            prepared,
            quantized,
            _Reader(np.load(folder / "calibration.npy"), name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return ort.InferenceSession(quantized, options)


def load(folder: Path, batch: int) -> Model:  # noqa: ARG001
    """The session as a function."""
    own = session(folder)
    name = own.get_inputs()[0].name
    return lambda rows: own.run(None, {name: rows})[0]


if __name__ == "__main__":
    serve(load)
