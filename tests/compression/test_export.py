"""Exports for other tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from orchestrator.compression.export import export
from orchestrator.compression.plan import apply_plan
from orchestrator.config.steps import Bf16, Plan, StaticInt8
from orchestrator.errors import CompressionError, StoreError
from orchestrator.runtime.execute import load
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, plan: Plan = ()) -> str:
    module, signature, settings = toys.toy("mlp")
    return apply_plan(store, toys.put(store, module, signature, settings), plan, toys.context((12,)))


@pytest.mark.parametrize("plan", [(), (Bf16(),), (StaticInt8(),)])
def test_pt2_answers_as_the_artifact_does(store: Store, tmp_path: Path, plan: Plan) -> None:
    digest = made(store, plan)
    path = export(store, digest, tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    rows = torch.from_numpy(toys.rows((12,)).inputs)
    with torch.no_grad():
        for batch in (1, 5, 64):
            wanted = rebuild(store, digest).module(rows[:batch])
            assert torch.allclose(program(rows[:batch]), wanted, atol=1e-5)


def test_int8_pt2_holds_no_float_weights(store: Store, tmp_path: Path) -> None:
    path = export(store, made(store, (StaticInt8(),)), tmp_path / "model.pt2")
    state = torch.export.load(path).state_dict
    assert not any(tensor.ndim > 1 and tensor.dtype == torch.float32 for tensor in state.values())


def test_onnx_without_its_packages_is_one_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(CompressionError, match="pip install onnx"):
        export(store, made(store), tmp_path / "model.onnx", "onnx")


def test_int8_has_no_onnx_form(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no ONNX form"):
        export(store, made(store, (StaticInt8(),)), tmp_path / "model.onnx", "onnx")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
def test_onnx_answers_as_the_artifact_does(store: Store, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    digest = made(store)
    path = export(store, digest, tmp_path / "model.onnx", "onnx")
    rows = toys.rows((12,)).inputs
    (outputs,) = onnxruntime.InferenceSession(str(path)).run(None, {"rows": rows})
    assert torch.allclose(
        torch.from_numpy(outputs), torch.from_numpy(load(store, digest, "eager")(rows)), atol=1e-4
    )


def test_a_missing_folder_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        export(store, made(store), tmp_path / "nowhere" / "model.pt2")
