"""Exports for other tools."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from orchestrator.compression.export import Format, export, format_of
from orchestrator.compression.plan import apply_plan
from orchestrator.config.steps import (
    Bf16,
    DynamicInt8,
    Fp8,
    Plan,
    StaticInt8,
    Step,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.errors import CompressionError, ConfigError, InputError
from orchestrator.runtime import forms
from orchestrator.runtime.execute import load
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, plan: Plan = (), name: str = "mlp") -> str:
    module, signature, settings = toys.toy(name)
    context = toys.context(signature.input_shape)
    return apply_plan(store, toys.put(store, module, signature, settings), plan, context)


@pytest.mark.parametrize(
    "plan", [(), *((step,) for step in (Bf16(), Fp8(), StaticInt8(), DynamicInt8(), WeightOnlyInt8()))]
)
def test_pt2_answers_as_the_artifact_does(store: Store, tmp_path: Path, plan: Plan) -> None:
    digest = made(store, plan)
    path = export(store, digest, tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    rows = torch.from_numpy(toys.rows((12,)).inputs)
    with torch.no_grad():
        for batch in (1, 5, 64):
            wanted = rebuild(store, digest).module(rows[:batch])
            assert torch.allclose(program(rows[:batch]), wanted, atol=1e-5)


@pytest.mark.parametrize("step", [StaticInt8(), WeightOnlyInt4(group=4)])
def test_int8_pt2_holds_no_float_weights(store: Store, tmp_path: Path, step: Step) -> None:
    path = export(store, made(store, (step,)), tmp_path / "model.pt2")
    state = torch.export.load(path).state_dict
    assert not any(tensor.ndim > 1 and tensor.dtype == torch.float32 for tensor in state.values())


def test_onnx_without_its_packages_is_one_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(CompressionError, match="pip install onnx"):
        export(store, made(store), tmp_path / "model.onnx", "onnx")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Bf16(), "no bfloat16 kernels"),
        (Fp8(), "multiplies no float8"),
        (DynamicInt8(), "ranges that are found at run time"),
        (WeightOnlyInt8(), "weight-only model as float32"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_with_the_reason(
    store: Store, tmp_path: Path, step: Step, sentence: str
) -> None:
    with pytest.raises(CompressionError, match=sentence):
        export(store, made(store, (step,)), tmp_path / "model.onnx", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
@pytest.mark.parametrize("plan", [(), (StaticInt8(),)], ids=["float", "int8"])
def test_onnx_answers_as_the_artifact_does(store: Store, tmp_path: Path, name: str, plan: Plan) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    digest = made(store, plan, name)
    path = export(store, digest, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(path))
    rows = toys.rows(toys.MODELS[name][1]).inputs
    for batch in (1, 5, 64):
        (outputs,) = session.run(None, {"rows": rows[:batch]})
        wanted = load(store, digest, "lowered" if plan else "eager")(rows[:batch])
        error = np.linalg.norm(outputs - wanted) / np.linalg.norm(wanted)
        assert error < (0.05 if plan else 1e-4), batch


@pytest.mark.slow
def test_an_int8_onnx_file_holds_no_float_weights(store: Store, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = export(store, made(store, (StaticInt8(),), "resnet"), tmp_path / "int8.onnx", "onnx")
    weights = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
    kinds = [tensor.data_type for tensor in weights if np.prod(tensor.dims) > 256]
    assert kinds
    assert set(kinds) == {onnx.TensorProto.INT8}


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(forms, "FLOAT_TOLERANCE", -1.0)
    (tmp_path / "model.onnx").write_text("the one before")
    with pytest.raises(CompressionError, match="answers otherwise"):
        export(store, made(store), tmp_path / "model.onnx", "onnx")
    assert (tmp_path / "model.onnx").read_text() == "the one before"
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan"), [("mlp", ()), ("resnet", ()), ("cnn", (DynamicInt8(),))], ids=["mlp", "resnet", "int8"]
)
def test_an_executorch_program_answers_as_the_artifact_does(
    store: Store, tmp_path: Path, name: str, plan: Plan
) -> None:
    pytest.importorskip("executorch")
    runtime = importlib.import_module("executorch.runtime")
    digest = made(store, plan, name)
    path = export(store, digest, tmp_path / "model.pte", "executorch")
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    rows = torch.from_numpy(toys.rows(toys.MODELS[name][1]).inputs)
    module = rebuild(store, digest).module
    for batch in (1, 5, 64):
        (outputs,) = method.execute([rows[:batch]])
        with torch.no_grad():
            error = forms.distance(outputs, module(rows[:batch]))
        assert error < (0.05 if plan else 1e-4), batch


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Bf16(), "no bfloat16 kernels"),
        (Fp8(), "no float8 kernels"),
        (StaticInt8(), "takes signed activations"),
        (WeightOnlyInt4(group=4), "weight-only model as float32"),
    ],
)
def test_what_executorch_cannot_hold_is_refused_with_the_reason(
    store: Store, tmp_path: Path, step: Step, sentence: str
) -> None:
    with pytest.raises(CompressionError, match=sentence):
        export(store, made(store, (step,)), tmp_path / "model.pte", "executorch")
    assert not (tmp_path / "model.pte").exists()


@pytest.mark.slow
def test_what_executorch_fails_on_is_one_sentence(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    with pytest.raises(CompressionError, match="ExecuTorch cannot hold the model"):
        export(store, made(store, (), "vit"), tmp_path / "model.pte", "executorch")
    assert not (tmp_path / "model.pte").exists()


def test_the_ending_says_the_format() -> None:
    assert [format_of(f"model{ending}") for ending in (".pt2", ".onnx", ".pte")] == list(get_args(Format))
    with pytest.raises(ConfigError, match=r"names no format.*\.bin"):
        format_of("model.bin")


def test_a_missing_folder_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        export(store, made(store), tmp_path / "nowhere" / "model.pt2")
