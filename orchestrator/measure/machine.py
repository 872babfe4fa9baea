"""What a latency depends on besides the model: processor, instruction set, versions."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.config.base import fingerprint

ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve")
"""Instruction sets that kernels of torch choose by, as Linux names them."""
LIBRARIES = ("torch", "torchao", "numpy")
OPTIONAL_LIBRARIES = ("openvino",)
"""Execute models where they are installed, and are left out elsewhere."""

HELD_TO = "ATEN_CPU_CAPABILITY"
"""Environment variable that keeps torch's kernels to fewer instructions than the machine has."""

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def machine() -> dict[str, Any]:
    """Facts of this machine as plain JSON: nothing that names the host or a path.

    Keys: `cpu`, `cores` (that this process may use), `isa`, `governor` (None where the system hides it),
    `memory_bytes`, `system`, `versions`; `held_to` where kernels may not use all instructions.
    """
    return dict(_machine())


@cache
def _machine() -> dict[str, Any]:
    cpu, isa = cpu_facts(_read(_CPUINFO))
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "isa": isa,
        "governor": _read(_GOVERNOR).strip() or None,
        "memory_bytes": memory_bytes(_read(_MEMINFO)),
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **library_versions()},
        **({"held_to": held} if (held := os.environ.get(HELD_TO)) else {}),
    }


def machine_fingerprint(facts: dict[str, Any]) -> str:
    """Digest of the facts that a latency depends on; memory is not one, a replaced library is."""
    return fingerprint({key: value for key, value in facts.items() if key != "memory_bytes"})[:16]


def cpu_facts(cpuinfo: str) -> tuple[str, list[str]]:
    """Processor name and its instruction sets out of `ISA`, from the text of `/proc/cpuinfo`."""
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    found = set(flags.group(1).split()) if flags else set()
    return name.group(1).strip() if name else "", [flag for flag in ISA if flag in found]


def memory_bytes(meminfo: str) -> int | None:
    """Total memory from the text of `/proc/meminfo`."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def library_versions() -> dict[str, str | None]:
    """Installed versions of the libraries that execute models."""
    optional = {name: found for name in OPTIONAL_LIBRARIES if (found := _version(name)) is not None}
    return {name: _version(name) for name in LIBRARIES} | optional


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
