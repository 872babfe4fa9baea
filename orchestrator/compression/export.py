"""Artifacts as files for other tools. Exports are never read back: the store is the source."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn

from orchestrator.config.signature import Signature
from orchestrator.errors import CompressionError, StoreError
from orchestrator.models.build import example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

Format = Literal["pt2", "onnx"]
_FLOAT_TOLERANCE = 1e-4
_INT8_TOLERANCE = 0.05
"""Relative error of the outputs; numbers that lie between two integers may be rounded either way."""


def export(
    store: Store, digest: str, path: str | Path, format: Format = "pt2", *, allowed: Collection[str] = ()
) -> Path:
    """Write an artifact as one file that takes any batch size.

    Args:
        store: where the artifact is.
        digest: of the artifact.
        path: of the file; its folder must exist.
        format: `pt2` for `torch.export.load` (int8 as quantize/dequantize pairs, to be lowered by the
            reader), or `onnx` (needs onnx and onnxscript; float32 and static int8). Where onnxruntime is
            installed an ONNX file is run once, and kept only if it answers alike.
        allowed: import paths that an imported model's factory may come from.

    Returns:
        The path.

    Raises:
        CompressionError: the format cannot hold the artifact, or its packages are missing.
        StoreError: the file cannot be written.
    """
    rebuilt = rebuild(store, digest, allowed=allowed)
    return write(rebuilt.module, rebuilt.manifest.signature, path, format)


def write(module: nn.Module, signature: Signature, path: str | Path, format: Format = "pt2") -> Path:
    """Write a module in memory; see `export`."""
    path = Path(path)
    if not path.parent.is_dir():
        raise StoreError("the folder of the export does not exist", path.parent, "create it")
    example = example_rows(signature, int8.EXAMPLE_ROWS)
    if format == "onnx":
        _write_onnx(module, example, path)
        return path
    if isinstance(module, fx.GraphModule):
        module = copy.deepcopy(module)
        _drop_unread(module)
    program = int8.export(module, example)
    try:
        torch.export.save(program, path)
    except (OSError, RuntimeError) as error:
        raise StoreError(f"cannot write the export ({error})", path, "check space and permissions") from error
    return path


def _drop_unread(graph: fx.GraphModule) -> None:
    """Remove the float weights that folding left behind: they would make the file as large as before."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)


def _write_onnx(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    _refuse_for_onnx(module)
    if isinstance(module, fx.GraphModule):
        module = copy.deepcopy(module)
        _drop_unread(module)
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise CompressionError("the ONNX export needs a package", package, f"pip install {package}")
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with int8.quiet():
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("rows", min=1)},),
                input_names=["rows"],
                output_names=["outputs"],
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise CompressionError(
            f"torch.onnx cannot export the model ({type(error).__name__}: {str(error).strip()[:200]})", "onnx"
        ) from error
    finally:
        noisy.setLevel(level)
    if importlib.util.find_spec("onnxruntime") is not None:
        _check_onnx(module, example, path)


def _refuse_for_onnx(module: nn.Module) -> None:
    """Say why, where the format or its runtime lacks what the artifact is made of."""
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


def _check_onnx(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Run the file once; one that answers otherwise is removed."""
    onnxruntime = importlib.import_module("onnxruntime")
    rows = torch.randint(0, 255, example.shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"rows": rows.numpy()})
    except Exception as error:
        # Its exceptions have no base class of their own.
        path.unlink()
        raise CompressionError(
            f"onnxruntime cannot run the file ({str(error).strip()[:200]})", "onnx", "export pt2"
        ) from error
    with torch.no_grad():
        wanted = module(rows)
    distance = float((torch.from_numpy(found) - wanted).norm() / wanted.norm().clamp_min(1e-12))
    allowed = _INT8_TOLERANCE if isinstance(module, fx.GraphModule) else _FLOAT_TOLERANCE
    if not distance <= allowed:
        path.unlink()
        raise CompressionError(
            f"onnxruntime answers otherwise than the model (relative error {distance:.4f})",
            "onnx",
            "export pt2",
        )
