"""Compiling artifacts ahead of time by AOTInductor; `package.py` opens what was compiled.

A compiled form is native code: it is loaded only from a store whose writers are trusted, after its files
are checked against their recorded sha256, and it belongs to one version of torch and one kind of CPU.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor_config
from torch import Tensor, fx, nn
from torch._inductor import aoti_compile_and_package
from torch.export import Dim

from orchestrator.config.signature import Signature
from orchestrator.errors import ExecutionError, UnavailableError
from orchestrator.models.build import example_inputs, example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.forms import INT8_TOLERANCE, distance, tolerance
from orchestrator.runtime.int8_passes import expect_example
from orchestrator.runtime.package import PACKAGE, has_compiler, open_package
from orchestrator.runtime.quiet import quiet
from orchestrator.runtime.rebuild import rebuild
from orchestrator.runtime.torchao_names import quant_lift_up
from orchestrator.store.store import Store

_MOST_ROWS = 2**16
_INT8_CALLS = re.compile(r"aoti_torch_cpu\w*q(?:conv|linear)\w*\(")
"""Calls of oneDNN's int8 kernels in generated code."""


def write(
    folder: Path, store: Store, digest: str, threads: int, batch: int, allowed: Collection[str]
) -> None:
    """Compile an artifact into an empty folder (about 10 s).

    Raises:
        ExecutionError: there is no C++ compiler, or it cannot compile the model.
    """
    module = rebuild(store, digest, allowed=allowed).module
    signature, count = store.manifest(digest).signature, max(batch, 2)
    compile_to(folder / PACKAGE, module, example_rows(signature, count), threads)
    rows = torch.from_numpy(example_inputs(signature, count))
    if isinstance(module, fx.GraphModule):
        _check_int8(folder / PACKAGE, module, rows, signature)
    else:
        _compare(folder / PACKAGE, module, rows, tolerance(module), signature)


def compile_to(path: Path, module: nn.Module, example: Tensor, threads: int) -> None:
    """Compile an eval-mode module for any batch size into a `.pt2` package.

    Args:
        path: of the package.
        module: float32 or bfloat16 inside, or a quantize/dequantize graph.
        example: rows to trace and tune with, at least two.
        threads: that the code is generated for.

    Raises:
        UnavailableError: there is no C++ compiler, or files cannot be written.
        ExecutionError: the model cannot be compiled.
    """
    if not has_compiler():
        raise UnavailableError("no C++ compiler was found", "aoti", "install g++, or run eager")
    # freezing: weights are folded and packed at compile time (torch 2.13: faster on convolutions).
    settings: dict[str, Any] = {"freezing": True, "cpp.threads": threads, "cpp_wrapper": False}
    # torch 2.13 writes what it compiled for into this dictionary, wherever it came from.
    settings["aot_inductor.metadata"] = {}
    if isinstance(module, fx.GraphModule):
        settings["pre_grad_custom_pass"] = quant_lift_up
        # Before freezing, which packs the weights.
        settings["joint_custom_post_pass"] = expect_example
    try:
        with quiet(), torch.no_grad(), inductor_config.patch(settings):
            rows = Dim("rows", min=1, max=_MOST_ROWS)
            program = torch.export.export(module, (example,), dynamic_shapes=({0: rows},))
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        # Tracing, generating and compiling raise many types; to the user they are one failure.
        of_disk = isinstance(getattr(error, "inner_exception", error), OSError)
        raise (UnavailableError if of_disk else ExecutionError)(
            f"AOTInductor cannot compile the model ({type(error).__name__}: {str(error).strip()[:300]})",
            "aoti",
            "see that g++ works (`orchestrator doctor`), or run eager",
        ) from error


def _check_int8(path: Path, graph: fx.GraphModule, rows: Tensor, signature: Signature) -> None:
    """Refuse a compiled int8 graph that multiplies in float, or answers otherwise than the lowered one.

    Inductor's patterns miss some graphs without a word: a float product of rounded numbers gives the right
    answers, slowly.
    """
    lowered = int8.lower(graph, rows)
    wanted = sum(str(node.target).startswith(int8.KERNELS) for node in lowered.graph.nodes)
    with zipfile.ZipFile(path) as package:
        sources = [package.read(name).decode() for name in package.namelist() if name.endswith(".cpp")]
    found = sum(len(_INT8_CALLS.findall(source)) for source in sources)
    if found < wanted:
        raise ExecutionError(
            f"AOTInductor runs {found} of {wanted} layers in int8", "aoti", "run the variant lowered"
        )
    _compare(path, lowered, rows, INT8_TOLERANCE, signature)


def _compare(path: Path, module: nn.Module, rows: Tensor, most: float, signature: Signature) -> None:
    """Refuse a package that answers otherwise than the module: generated code may be wrong without a word."""
    with torch.inference_mode():
        error = distance(open_package(path)(rows), module(rows), signature)
    if not error < most:
        raise ExecutionError(
            "the compiled form answers otherwise than the model",
            f"relative error {error:.3g}, at most {most:g}",
            "run the variant lowered or eager",
        )
