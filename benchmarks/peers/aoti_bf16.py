"""AOTInductor with bfloat16 weights and frozen constants, without this project."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import nn

from benchmarks.peers.worker import Model, Rows, serve


class _InFloat(nn.Module):
    """A bfloat16 network behind float scaling: rows in, float logits out."""

    def __init__(self, scaling: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.scaling, self.network = scaling, network

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(self.scaling(rows).bfloat16()).float()
        return out


def load(folder: Path, batch: int) -> Model:
    """Compiled for one batch size."""
    torch.set_num_threads(1)
    scaling: Any = torch.export.load(folder / "scaling.pt2").module()
    network: Any = torch.export.load(folder / "network.pt2").module()
    network = network.to(torch.bfloat16, memory_format=torch.channels_last)
    rows = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad(), inductor.patch(freezing=True), tempfile.TemporaryDirectory() as scratch:
        program = torch.export.export(_InFloat(scaling, network), (rows,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{scratch}/model.pt2")
        run = torch._inductor.aoti_load_package(path)

    def call(given: Rows) -> Rows:
        with torch.inference_mode():
            out: Rows = run(torch.from_numpy(given)).numpy()
            return out

    return call


if __name__ == "__main__":
    serve(load)
