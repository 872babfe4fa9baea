"""Modules as ONNX files: float32, and static int8 as quantize/dequantize pairs."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from orchestrator.errors import CompressionError
from orchestrator.runtime import fp8
from orchestrator.runtime.quiet import quiet

INPUT, OUTPUT = "rows", "outputs"
"""Names in the file."""


def write_onnx(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write a module for any batch size into one file.

    Args:
        module: float32 inside, or a static quantize/dequantize graph; it is not changed.
        example: rows to trace with, at least two.
        path: of the file.

    Raises:
        CompressionError: the format cannot hold the module, or a package is missing.
    """
    _refuse(module)
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise CompressionError("the ONNX export needs a package", package, f"pip install {package}")
    if isinstance(module, fx.GraphModule):
        module = copy.deepcopy(module)
        drop_unread(module)
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with quiet():
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("rows", min=1)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise CompressionError(
            f"torch.onnx cannot export the model ({type(error).__name__}: {str(error).strip()[:200]})", "onnx"
        ) from error
    finally:
        noisy.setLevel(level)


def drop_unread(graph: fx.GraphModule) -> None:
    """Remove the float weights that folding left behind: they would make a file as large as before."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)


def _refuse(module: nn.Module) -> None:
    """Say why, where the format or its runtime lacks what the module is made of."""
    if any(parameter.dtype == fp8.TYPE for parameter in module.parameters()):
        raise CompressionError(
            "onnxruntime multiplies no float8 numbers on CPUs", "onnx", "export the float32 parent"
        )
    if any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):
        raise CompressionError(
            "onnxruntime has no bfloat16 kernels for CPUs", "onnx", "export the float32 parent"
        )
    if isinstance(module, fx.GraphModule) and any(
        "choose_qparams" in str(node.target) for node in module.graph.nodes
    ):
        raise CompressionError(
            "torch.onnx has no form of ranges that are found at run time", "onnx", "use int8_static"
        )
