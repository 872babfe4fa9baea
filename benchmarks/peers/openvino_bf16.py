"""OpenVINO in bfloat16, by its guide for latency on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import properties as props

from benchmarks.peers.worker import Model, Rows, serve


def compiled(model: ov.Model, batch: int, precision: ov.Type) -> Model:
    """The model for one batch size on one thread."""
    model.reshape({model.inputs[0]: [batch, *list(model.inputs[0].partial_shape)[1:]]})
    settings = {
        props.hint.performance_mode(): props.hint.PerformanceMode.LATENCY,
        props.hint.inference_precision(): precision,
        props.inference_num_threads(): 1,
        props.num_streams(): 1,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(rows: Rows) -> Rows:
        request.infer([rows], share_inputs=True, share_outputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


def load(folder: Path, batch: int) -> Model:
    """The float model, computed in bfloat16."""
    return compiled(ov.Core().read_model(folder / "model.onnx"), batch, ov.Type.bf16)


if __name__ == "__main__":
    serve(load)
