"""What kept outputs are named by."""

from __future__ import annotations

import pytest

from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.runtime import outputs


@pytest.mark.parametrize(("execution", "apart"), [("openvino", 2), ("eager", 1)])
def test_another_openvino_gives_outputs_of_its_own(
    execution: Execution, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for version in ("2026.3", "2026.4"):
        monkeypatch.setattr(outputs, "library_versions", lambda version=version: {"openvino": version})
        keys.add(outputs._key("test", "rows", execution, LatencySettings()))
    assert len(keys) == apart


def test_another_torchao_or_cpu_gives_outputs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 differs where the CPU has AMX, int8 by who lowers it."""
    keys = set()
    for isa, torchao in (("avx512f", "1"), ("amx_bf16", "1"), ("avx512f", "2")):
        monkeypatch.setattr(outputs, "machine", lambda isa=isa: {"isa": [isa]})
        monkeypatch.setattr(outputs, "library_versions", lambda torchao=torchao: {"torchao": torchao})
        keys.add(outputs._key("test", "rows", "lowered", LatencySettings()))
    assert len(keys) == 3
