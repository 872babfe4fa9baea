"""Modules as ExecuTorch programs (.pte) for phones and small devices, with XNNPACK's kernels."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from orchestrator.config.signature import Signature
from orchestrator.errors import CompressionError
from orchestrator.models.build import example_inputs, example_rows
from orchestrator.runtime import fp8
from orchestrator.runtime.forms import distance, tolerance
from orchestrator.runtime.onnx import drop_unread
from orchestrator.runtime.quiet import quiet
from orchestrator.runtime.torchao_names import QUANTIZE

MOST_ROWS = 64
"""Largest batch of a program: its memory is planned when it is made, for the largest."""


def write_executorch(module: nn.Module, signature: Signature, path: Path) -> None:
    """Write a module as a program for 1 to `MOST_ROWS` rows, and run it once.

    Args:
        module: float32 inside, or a dynamic int8 graph; it is not changed.
        signature: of the model.
        path: of the file.

    Raises:
        CompressionError: the format cannot hold the module, its package is missing, or the program answers
            otherwise than the module.
        OSError: the file cannot be written.
    """
    _refuse(module)
    if importlib.util.find_spec("executorch") is None:
        raise CompressionError("this export needs a package", "executorch", "pip install executorch")
    if isinstance(module, fx.GraphModule):
        module = copy.deepcopy(module)
        drop_unread(module)
    # Traced with the most rows: the planner (1.5.1) may hold a program to less than the bound it is given.
    try:
        program = _lowered(module, example_rows(signature, MOST_ROWS))
    except Exception as error:
        # Its passes raise whatever they meet.
        raise _no_form(error) from error
    path.write_bytes(program)
    _check(module, signature, path)


def _refuse(module: nn.Module) -> None:
    """Say why, where XNNPACK lacks what the module is made of."""
    if any(parameter.dtype == fp8.TYPE for parameter in module.parameters()):
        raise CompressionError(
            "XNNPACK has no float8 kernels", "executorch", "export the float32 parent or int8_dynamic"
        )
    if any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):
        raise CompressionError(
            "XNNPACK has no bfloat16 kernels for this model", "executorch", "export the float32 parent"
        )
    if isinstance(module, fx.GraphModule) and any(node.target is QUANTIZE for node in module.graph.nodes):
        raise CompressionError(
            "XNNPACK takes signed activations, and static int8 of this project has unsigned ones",
            "executorch",
            "export the float32 parent or int8_dynamic, or use onnx",
        )


def _lowered(module: nn.Module, example: Tensor) -> bytes:
    exir: Any = importlib.import_module("executorch.exir")
    xnnpack: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    with quiet(), _silent(), torch.no_grad():
        traced = torch.export.export(module, (example,), dynamic_shapes=({0: rows},), strict=True)
        edge = exir.to_edge_transform_and_lower(traced, partitioner=[xnnpack.XnnpackPartitioner()])
        program: bytes = edge.to_executorch().buffer
    return program


def _check(module: nn.Module, signature: Signature, path: Path) -> None:
    """Run the file with the most rows and with one."""
    most = torch.from_numpy(example_inputs(signature, MOST_ROWS))
    runtime: Any = importlib.import_module("executorch.runtime")
    for rows in (most, most[:1]):
        try:
            method = runtime.Runtime.get().load_program(path).load_method("forward")
            (found,) = method.execute([rows])
        except Exception as error:
            raise _no_form(error) from error
        with torch.no_grad():
            far = distance(found, module(rows), signature)
        if not far <= tolerance(module):
            raise CompressionError(
                f"ExecuTorch answers otherwise than the model (relative error {far:.4f})",
                "executorch",
                "export onnx or pt2",
            )


def _no_form(error: Exception) -> CompressionError:
    told = f"{type(error).__name__}: {str(error).strip()[:200]}"
    return CompressionError(f"ExecuTorch cannot hold the model ({told})", "executorch", "export onnx or pt2")


@contextmanager
def _silent() -> Iterator[None]:
    """Its passes log how they go."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
