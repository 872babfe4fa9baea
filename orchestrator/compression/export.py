"""Artifacts as files for other tools. Exports are never read back: the store is the source."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import fx, nn

from orchestrator.compression.executorch import write_executorch
from orchestrator.config.signature import Signature
from orchestrator.errors import CompressionError, ConfigError, InputError, StoreError
from orchestrator.models.build import example_inputs, example_rows
from orchestrator.runtime import int8, weight_only
from orchestrator.runtime.forms import distance, tolerance
from orchestrator.runtime.onnx import INPUT, drop_unread, write_onnx
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

Format = Literal["pt2", "onnx", "executorch"]
_ENDINGS: dict[str, Format] = {".pt2": "pt2", ".onnx": "onnx", ".pte": "executorch"}


def export(
    store: Store, digest: str, path: str | Path, format: Format = "pt2", *, allowed: Collection[str] = ()
) -> Path:
    """Write an artifact as one file that takes any batch size (an ExecuTorch program up to 64 rows).

    Args:
        store: where the artifact is.
        digest: of the artifact.
        path: of the file; its folder must exist.
        format: `pt2` for `torch.export.load` (int8 as quantize/dequantize pairs, to be lowered by the
            reader; weight-only as integers that every call unpacks), `onnx` (needs onnx and onnxscript;
            float32 and static int8), or `executorch` (needs executorch; float32 and dynamic int8 with
            XNNPACK's kernels). Where onnxruntime is installed an ONNX file is run once, as every ExecuTorch
            program is, and kept only if it answers alike.
        allowed: import paths that an imported model's factory may come from.

    Returns:
        The path.

    Raises:
        CompressionError: the format cannot hold the artifact, or its packages are missing.
        InputError: the folder of the file does not exist.
        StoreError: the file cannot be written.
    """
    rebuilt = rebuild(store, digest, allowed=allowed)
    return write(rebuilt.module, rebuilt.manifest.signature, path, format)


def format_of(path: str | Path) -> Format:
    """What the ending of a file asks for.

    Raises:
        ConfigError: it is none of `.pt2`, `.onnx` and `.pte`.
    """
    ending = Path(path).suffix
    if ending not in _ENDINGS:
        raise ConfigError(
            "the ending of the file names no format",
            ending or str(path),
            f"use {', '.join(_ENDINGS)}, or say the format: {', '.join(get_args(Format))}",
        )
    return _ENDINGS[ending]


def write(module: nn.Module, signature: Signature, path: str | Path, format: Format = "pt2") -> Path:
    """Write a module in memory; see `export`."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("the folder of the export does not exist", path.parent, "create it")
    if format != "pt2" and weight_only.converted(module):
        raise CompressionError(
            "the file would hold a weight-only model as float32, no smaller than before",
            format,
            "export pt2, or the float32 parent",
        )
    example = example_rows(signature, int8.EXAMPLE_ROWS)
    try:
        # A file of that name is replaced by a finished and checked one, or stays.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            scratch = Path(folder) / path.name
            if format == "onnx":
                write_onnx(module, example, scratch)
                if importlib.util.find_spec("onnxruntime") is not None:
                    _check_onnx(module, signature, scratch)
            elif format == "executorch":
                write_executorch(module, signature, scratch)
            else:
                _write_pt2(module, example, scratch)
            scratch.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write the export ({error})", path, "check space and permissions") from error
    return path


def _write_pt2(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    if isinstance(module, fx.GraphModule):
        module = copy.deepcopy(module)
        drop_unread(module)
    elif weight_only.converted(module):
        module = weight_only.unpacking(module)
    program = int8.export(module, example)
    try:
        torch.export.save(program, path)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _check_onnx(module: nn.Module, signature: Signature, path: Path) -> None:
    """Run the file once; one that answers otherwise is removed."""
    onnxruntime = importlib.import_module("onnxruntime")
    rows = torch.from_numpy(example_inputs(signature, int8.EXAMPLE_ROWS))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {INPUT: rows.numpy()})
    except Exception as error:
        # Its exceptions have no base class of their own.
        raise CompressionError(
            f"onnxruntime cannot run the file ({str(error).strip()[:200]})", "onnx", "export pt2"
        ) from error
    with torch.no_grad():
        wanted = module(rows)
    far = distance(torch.from_numpy(found), wanted, signature)
    if not far <= tolerance(module):
        raise CompressionError(
            f"onnxruntime answers otherwise than the model (relative error {far:.4f})",
            "onnx",
            "export pt2",
        )
