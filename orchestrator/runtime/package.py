"""Packages that AOTInductor compiled: what they are for, and how one is opened. Torch's compiler, two seconds
of import, is needed to make one (`compiled.py`), not here."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import shutil
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import ExecutionError
from orchestrator.runtime.forms import mixed

PACKAGE = "model.pt2"
_VERSION = 2
"""Raise when the way of compiling changes: older compiled forms are then left alone."""

_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def target_facts(threads: int, batch: int) -> dict[str, Any]:
    """What a compiled form depends on besides the artifact."""
    return {
        "version": _VERSION,
        "execution": "aoti",
        "torch": torch.__version__,
        "machine": platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cpu": _cpu_flags(),
        "threads": threads,
        "batch": batch,
    }


def target_key(facts: dict[str, Any]) -> str:
    """Folder name of a compiled form, readable at its start."""
    version, isa = facts["torch"].split("+")[0], facts["isa"].lower()
    return f"aoti-torch{version}-{isa}-t{facts['threads']}-b{facts['batch']}-{mixed(facts)}"


def has_compiler() -> bool:
    """Whether packages can be made here."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


@functools.cache
def _cpu_flags() -> str:
    """Digest of the CPU's instruction sets: generated code uses all that the machine has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return hashlib.sha256(" ".join(sorted(flags.partition(":")[2].split())).encode()).hexdigest()[:16]


def open_package(path: Path) -> Callable[[Tensor], Tensor]:
    """A package on the CPU as a function from one tensor to one; it may be called from one thread at a time.

    Raises:
        ExecutionError: the file is no such package, or not for this machine.
    """
    try:
        library = _library_in(path)
        return _Model(library) if library is not None else _by_torch(path)
    except (RuntimeError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ExecutionError(
            "the compiled form cannot be loaded",
            str(error).strip()[:200],
            "remove its folder; it is compiled anew",
        ) from error


def _by_torch(path: Path) -> Callable[[Tensor], Tensor]:
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def run(rows: Tensor) -> Tensor:
        output: Tensor = loader.boxed_run([rows])[0]
        return output

    return run


def _library_in(path: Path) -> ctypes.CDLL | None:
    """The package's one library; None where only torch can run it: it calls back for operators without a C
    function (they stand in a JSON file), or is not for Linux."""
    with zipfile.ZipFile(path) as package:
        names = [PurePosixPath(name) for name in package.namelist()]
        libraries = [name for name in names if name.suffix == ".so"]
        if sys.platform != "linux" or len(libraries) != 1:
            return None
        called_back = any(
            name.suffix == ".json" and not name.stem.endswith("_metadata")
            for name in names
            if name.parent == libraries[0].parent
        )
        if called_back:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            # Once it is mapped it needs no name.
            return ctypes.CDLL(package.extract(str(libraries[0]), scratch))


class _Model:
    """Calls a library through AOTInductor's C interface (torch/csrc/inductor/aoti_runtime/interface.h).

    Python's lock is free while the code runs. Torch's own loader holds it (2.13), so that a server's event
    loop would stand still for every batch.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._model = ctypes.c_void_p()
        model = ctypes.byref(self._model)
        if library.AOTInductorModelContainerCreateWithDevice(model, ctypes.c_size_t(1), b"cpu", None):
            raise RuntimeError("the library cannot be initialized")
        self._run = library.AOTInductorModelContainerRun
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = (pointer, pointer, size, pointer, size, pointer, pointer)
        weakref.finalize(self, library.AOTInductorModelContainerDelete, self._model)

    def __call__(self, rows: Tensor) -> Tensor:
        handle = _pointer_of(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(rows), None)
        inputs, outputs = (ctypes.c_void_p * 1)(handle), (ctypes.c_void_p * 1)()
        if self._run(self._model, inputs, 1, outputs, 1, None, None):
            raise ExecutionError("the compiled code failed", list(rows.shape), "standard error says why")
        capsule = _capsule_of(outputs[0], None, None)
        output: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
        return output
