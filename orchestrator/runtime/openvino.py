"""Artifacts run by OpenVINO: less between its kernels than torch has, which shows in small batches.

The way there is ONNX: OpenVINO's own reader of exported programs gave wrong answers for uint8 rows, and
refused quantize/dequantize graphs (2026.4).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.steps import Bf16, StaticInt8
from orchestrator.errors import CompressionError, ExecutionError, UnavailableError
from orchestrator.models.build import example_inputs, example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.bf16 import has_bf16_kernels, to_float
from orchestrator.runtime.forms import cached, distance, mixed, tolerance
from orchestrator.runtime.onnx import write_onnx
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

MODEL = "model.xml"
_VERSION = 2
"""Raise when the way of converting or checking changes: older forms are then left alone."""


def load(
    store: Store, digest: str, *, threads: int, allowed: Collection[str] = ()
) -> Callable[[Tensor], Tensor]:
    """The artifact in OpenVINO, converted when the store does not have that form yet (some seconds).

    A bfloat16 artifact is kept with float32 numbers and computed in bfloat16.

    Raises:
        ExecutionError: a package is missing, this CPU has no kernels for the artifact's numbers, or OpenVINO
            cannot hold the model or answers otherwise.
    """
    engine = _engine()
    manifest = store.manifest(digest)
    bf16 = any(isinstance(step, Bf16) for step in manifest.plan)
    _refuse(manifest, bf16=bf16)
    facts = {
        "version": _VERSION,
        "execution": "openvino",
        "openvino": engine.get_version(),
        "torch": torch.__version__,
    }

    def make(folder: Path) -> None:
        _convert(folder, rebuild(store, digest, allowed=allowed).module, manifest, engine, bf16=bf16)

    folder = cached(store, digest, f"openvino-{mixed(facts)}", facts, make)
    return _open(engine, folder / MODEL, threads, bf16=bf16)


def missing() -> str | None:
    """A package that this execution needs and that is not installed; None when all are."""
    needed = ("openvino", "onnx", "onnxscript")
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def _engine() -> Any:
    if (package := missing()) is not None:
        raise UnavailableError(
            "this execution needs a package", package, "pip install 'ensemble-orchestrator[openvino]'"
        )
    return importlib.import_module("openvino")


def _refuse(manifest: Draft, *, bf16: bool) -> None:
    if bf16 and not has_bf16_kernels():
        raise ExecutionError("this CPU has no bfloat16 kernels", "openvino", "run the float32 parent")
    for step, decision in zip(manifest.plan, manifest.decisions, strict=True):
        if isinstance(step, StaticInt8):
            int8.check_range(127 if decision["reduce_range"] else 255)


def _convert(folder: Path, module: nn.Module, manifest: Draft, engine: Any, *, bf16: bool) -> None:
    """Write OpenVINO's own form; it is opened once, as it will run, and kept only if it answers alike."""
    example = example_rows(manifest.signature, int8.EXAMPLE_ROWS)
    file = folder / "model.onnx"
    try:
        write_onnx(to_float(module) if bf16 else module, example, file)
        # Halves would change the answers.
        engine.save_model(engine.Core().read_model(file), folder / MODEL, compress_to_fp16=False)
    except (CompressionError, RuntimeError) as error:
        raise ExecutionError(
            f"OpenVINO cannot hold the model ({str(error).strip()[:300]})", "openvino", "run it otherwise"
        ) from error
    file.unlink()
    rows = torch.from_numpy(example_inputs(manifest.signature, int8.EXAMPLE_ROWS))
    with torch.no_grad():
        found, wanted = _open(engine, folder / MODEL, 1, bf16=bf16)(rows), module(rows)
    far = distance(found, wanted, manifest.signature)
    if not far <= tolerance(module):
        raise ExecutionError(
            f"OpenVINO answers otherwise than the model (relative error {far:.4f})",
            "openvino",
            "run it otherwise",
        )


def _open(engine: Any, path: Path, threads: int, *, bf16: bool) -> Callable[[Tensor], Tensor]:
    hint = engine.properties.hint
    settings = {
        hint.performance_mode(): hint.PerformanceMode.LATENCY,
        hint.inference_precision(): engine.Type.bf16 if bf16 else engine.Type.f32,
        engine.properties.inference_num_threads(): threads,
        engine.properties.num_streams(): 1,
    }
    try:
        request = engine.Core().compile_model(path, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ExecutionError(
            f"OpenVINO cannot load the model ({str(error).strip()[:300]})", "openvino", "run it otherwise"
        ) from error

    def run(rows: Tensor) -> Tensor:
        request.infer([rows.numpy()], share_inputs=True, share_outputs=True)
        # The next call overwrites what the request holds.
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run
