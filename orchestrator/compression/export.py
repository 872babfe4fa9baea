"""Artifacts as files for other tools. Exports are never read back: the store is the source."""

from __future__ import annotations

import copy
import importlib.util
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


def export(
    store: Store, digest: str, path: str | Path, format: Format = "pt2", *, allowed: Collection[str] = ()
) -> Path:
    """Write an artifact as one file that takes any batch size.

    Args:
        store: where the artifact is.
        digest: of the artifact.
        path: of the file; its folder must exist.
        format: `pt2` for `torch.export.load` (int8 as quantize/dequantize pairs, to be lowered by the
            reader), or `onnx` (needs the packages onnx and onnxscript; float artifacts only).
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
    if isinstance(module, fx.GraphModule):
        raise CompressionError(
            "an int8 artifact has no ONNX form",
            "onnx",
            "export its float parent and quantize it with onnxruntime",
        )
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise CompressionError("the ONNX export needs a package", package, f"pip install {package}")
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
            )
    except Exception as error:
        raise CompressionError(
            f"torch.onnx cannot export the model ({type(error).__name__}: {str(error).strip()[:200]})", "onnx"
        ) from error
