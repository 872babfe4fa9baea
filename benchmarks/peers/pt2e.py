"""PT2E post-training quantization by the tutorial for x86: export, prepare, calibrate, convert, compile.

https://docs.pytorch.org/ao/stable/tutorials_source/pt2e_quant_x86_inductor.html
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["TORCHAO_FORCE_SKIP_LOADING_SO_FILES"] = "1"

import numpy as np
import torch
import torch._inductor.config as inductor
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from benchmarks.peers.worker import Model, Rows, serve


def load(folder: Path, batch: int) -> Model:
    """Quantized and compiled for one batch size."""
    torch.set_num_threads(1)
    inductor.freezing = True
    rows = torch.from_numpy(np.load(folder / "calibration.npy"))
    exported = torch.export.load(folder / "model.pt2").module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = prepare_pt2e(exported, quantizer)
        for piece in rows.split(32):
            prepared(piece)
        converted = convert_pt2e(prepared)
        compiled: Any = torch.compile(converted)
        compiled(rows[:batch])

    def call(given: Rows) -> Rows:
        with torch.no_grad():
            out: Rows = compiled(torch.from_numpy(given)).numpy()
            return out

    return call


if __name__ == "__main__":
    serve(load)
