"""Executables: eager, lowered and compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.compression.plan import apply_plan
from orchestrator.config.measure import Execution
from orchestrator.config.model import Cnn, CnnKwargs
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16, DynamicInt8, Fp8, Plan, StaticInt8
from orchestrator.errors import CorruptArtifactError, DataError, ExecutionError, UnavailableError
from orchestrator.runtime import compiled, execute, fp8, int8, openvino, package
from orchestrator.runtime.execute import executions, lacking, load, of_module, predict
from orchestrator.runtime.forms import BF16_TOLERANCE, FLOAT_TOLERANCE, distance, tolerance
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, name: str = "mlp", plan: Plan = ()) -> str:
    module, signature, settings = toys.toy(name)
    parent = toys.put(store, module, signature, settings)
    return apply_plan(store, parent, plan, toys.context(signature.input_shape))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ((), ("eager", "aoti", "openvino")),
        ((Bf16(),), ("eager", "aoti", "openvino")),
        ((Fp8(),), ("eager", "aoti")),
        ((StaticInt8(),), ("lowered", "aoti", "openvino")),
        ((DynamicInt8(),), ("lowered",)),
    ],
)
def test_executions_and_the_refusal_of_others(
    store: Store, plan: Plan, expected: tuple[Execution, ...]
) -> None:
    digest = made(store, plan=plan)
    assert executions(store.manifest(digest)) == expected
    other: Execution = "eager" if "lowered" in expected else "lowered"
    with pytest.raises(ExecutionError, match=f"it runs as: {expected[0]}"):
        load(store, digest, other)


def test_eager_is_the_module_itself(store: Store) -> None:
    module, _, _ = toys.toy("cnn")
    inputs = toys.rows((1, 8, 8)).inputs
    outputs = load(store, made(store, "cnn"), "eager")(inputs)
    with torch.no_grad():
        assert np.array_equal(outputs, module(torch.from_numpy(inputs)).numpy())


@pytest.mark.parametrize(
    "rows",
    [np.zeros((2, 11), np.float32), np.zeros((2, 12), np.float64), np.zeros(12, np.float32)],
)
def test_rows_that_do_not_fit_are_refused(store: Store, rows: np.ndarray[Any, Any]) -> None:
    executable = load(store, made(store), "eager")
    with pytest.raises(DataError, match="the rows do not fit the model"):
        executable(rows)


def test_no_rows_give_no_outputs(store: Store) -> None:
    executable = load(store, made(store), "eager")
    empty = np.zeros((0, 12), np.float32)
    assert executable(empty).shape == predict(executable, empty).shape == (0, toys.CLASSES)


def test_large_batches_are_run_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = load(store, made(store), "eager")
    inputs = toys.rows((12,)).inputs
    whole = executable(inputs)
    monkeypatch.setattr(execute, "LARGEST_BATCH", 10)
    assert np.allclose(executable(inputs), whole, atol=1e-5)
    assert np.allclose(predict(executable, inputs, batch=7), whole, atol=1e-5)


def test_memory_maps_and_strided_rows_are_fine(store: Store, tmp_path: Path) -> None:
    executable = load(store, made(store), "eager")
    inputs = toys.rows((12,)).inputs
    np.save(tmp_path / "rows.npy", inputs)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(executable(mapped), executable(inputs))
    assert np.array_equal(executable(mapped[::2]), executable(np.ascontiguousarray(inputs[::2])))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_outputs_are_float32_whatever_a_model_of_ones_own_answers_in(kind: torch.dtype) -> None:
    module, signature, _ = toys.toy("mlp")
    rows = toys.rows(signature.input_shape).inputs
    module.register_forward_hook(lambda module, inputs, output: output.to(kind))  # noqa: ARG005
    outputs = of_module(module.eval(), signature, "eager")(rows)
    assert outputs.dtype == np.float32
    with torch.no_grad():
        assert np.array_equal(outputs, module(torch.from_numpy(rows)).float().numpy())


def test_threads_are_those_asked_for(store: Store) -> None:
    digest = made(store)
    two = load(store, digest, "eager", threads=2)
    one = load(store, digest, "eager", threads=1)
    inputs = toys.rows((12,)).inputs
    two(inputs)
    assert torch.get_num_threads() == 2
    one(inputs)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.parametrize("plan", [(), (Bf16(),)])
def test_compiled_once_for_any_batch(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(store, "cnn", plan)
    eager, first = load(store, digest, "eager"), load(store, digest, "aoti", batch=8)
    inputs = toys.rows((1, 8, 8)).inputs
    for batch in (1, 3, 8, 33, 64):
        error = np.abs(first(inputs[:batch]) - eager(inputs[:batch])).max()
        assert error < (0.05 if plan else 1e-4), batch
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "compile_to", _refuse)
        again = load(store, digest, "aoti", batch=8)
    assert np.array_equal(again(inputs), first(inputs))
    (folder,) = (store.root / "compiled" / digest).iterdir()
    assert folder.name.startswith(f"aoti-torch{torch.__version__.split('+')[0]}-")
    # A damaged form is not loaded but compiled again.
    (folder / package.PACKAGE).write_bytes(b"not a package")
    with pytest.raises(CorruptArtifactError):
        store.compiled(digest, folder.name)
    assert np.array_equal(load(store, digest, "aoti", batch=8)(inputs), first(inputs))


def _refuse(*args: object) -> None:
    raise AssertionError(f"compiled again: {args}")


def test_without_a_compiler_aoti_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(store)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # noqa: ARG005
    assert "aoti" in lacking()
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler"):
        load(store, digest, "aoti")


def test_the_target_of_a_compiled_form_tells_what_it_depends_on() -> None:
    names = {
        package.target_key(package.target_facts(threads, batch)) for threads in (1, 2) for batch in (1, 32)
    }
    assert len(names) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["text_ngrams", "text_cnn", "text_transformer", "audio_cnn", "ft_transformer"]
)
@pytest.mark.parametrize("plan", [(), (Bf16(),)], ids=["fp32", "bf16"])
def test_models_of_text_sound_and_tables_compile(store: Store, model: str, plan: Plan) -> None:
    digest = made(store, model, plan)
    inputs = toys.rows(toys.MODELS[model][1], 33).inputs
    eager, found = load(store, digest, "eager"), load(store, digest, "aoti", batch=8)
    for rows in (1, 3, 33):
        far = distance(torch.from_numpy(found(inputs[:rows])), torch.from_numpy(eager(inputs[:rows])))
        assert far < (0.03 if plan else 1e-5), rows


@pytest.mark.slow
def test_static_int8_compiles_to_int8_kernels(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(store, "mlp", (StaticInt8(),))
    lowered, compiled_form = load(store, digest, "lowered"), load(store, digest, "aoti", batch=8)
    inputs = toys.rows((12,)).inputs
    for batch in (1, 3, 8, 33):
        wanted = lowered(inputs[:batch])
        error = np.linalg.norm(compiled_form(inputs[:batch]) - wanted) / np.linalg.norm(wanted)
        assert error < 0.02, batch

    (found,) = (store.root / "compiled" / digest).glob(f"*/{package.PACKAGE}")
    graph, example = rebuild(store, digest).module, torch.zeros(8, 12)
    signature = store.manifest(digest).signature
    assert isinstance(graph, torch.fx.GraphModule)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_INT8_CALLS", re.compile("no such kernel"))
        with pytest.raises(ExecutionError, match="0 of 3 layers in int8"):
            compiled._check_int8(found, graph, example, signature)
    monkeypatch.setattr(compiled, "INT8_TOLERANCE", 0.0)
    with pytest.raises(ExecutionError, match="answers otherwise"):
        compiled._check_int8(found, graph, example, signature)


@pytest.mark.slow
def test_compiled_int8_weights_are_packed_once_for_all_calls(store: Store) -> None:
    """oneDNN packs 96 channels by the input's shape; packed otherwise, each call packs again."""
    signature = toys.signature((3, 8, 8))
    settings = Cnn(kwargs=CnnKwargs(channels=(96, 96), hidden=16))
    parent = toys.put(store, toys.model(settings, signature), signature, settings)
    digest = apply_plan(store, parent, (StaticInt8(),), toys.context(signature.input_shape))
    load(store, digest, "aoti", batch=8)
    code = (
        "from orchestrator.runtime.execute import load; from orchestrator.store.store import Store;"
        "from tests.compression import toys; rows = toys.rows((3, 8, 8)).inputs[:3];"
        f"run = load(Store({str(store.root)!r}), {digest!r}, 'aoti', batch=8);"
        "run(rows); print('second', flush=True); run(rows)"
    )
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    calls = said.split("second")[1].splitlines()
    assert sum(",convolution," in call for call in calls) == 2
    assert not [call for call in calls if ",reorder," in call and "src:s8" in call]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "vit"])
@pytest.mark.parametrize("plan", [(), (StaticInt8(),)], ids=["fp32", "int8"])
def test_openvino_answers_as_torch_does(store: Store, model: str, plan: Plan) -> None:
    digest = made(store, model, plan)
    inputs = toys.rows(toys.MODELS[model][1], 33).inputs
    reference, found = load(store, digest, "lowered" if plan else "eager"), load(store, digest, "openvino")
    for rows in (1, 3, 33):
        far = distance(torch.from_numpy(found(inputs[:rows])), torch.from_numpy(reference(inputs[:rows])))
        assert far < (0.05 if plan else 1e-5)


def test_openvino_computes_bf16_artifacts_where_the_cpu_can(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = made(store, "cnn", (Bf16(),))
    monkeypatch.setattr(openvino, "has_bf16_kernels", lambda: True)
    inputs = toys.rows((1, 8, 8)).inputs
    wanted, found = load(store, digest, "eager")(inputs), load(store, digest, "openvino")(inputs)
    assert distance(torch.from_numpy(found), torch.from_numpy(wanted)) < 0.05
    monkeypatch.setattr(openvino, "has_bf16_kernels", lambda: False)
    with pytest.raises(ExecutionError, match=r"no bfloat16 kernels.*float32"):
        load(store, digest, "openvino")


def test_openvino_is_checked_in_the_numbers_and_at_the_scale_that_it_will_run_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = made(store, plan=(Bf16(),))
    monkeypatch.setattr(openvino, "has_bf16_kernels", lambda: True)
    opened, answers = [], []
    really_open = openvino._open

    def open_(*args: Any, bf16: bool) -> Any:
        opened.append(bf16)
        return really_open(*args, bf16=bf16)

    def far(found: torch.Tensor, wanted: torch.Tensor, signature: Signature) -> float:
        answers.append(wanted)
        return distance(found, wanted, signature)

    monkeypatch.setattr(openvino, "_open", open_)
    monkeypatch.setattr(openvino, "distance", far)
    load(store, digest, "openvino")
    assert opened == [True, True]
    # Rows far below the mean of the data would all be answered alike.
    (wanted,) = answers
    assert wanted.std(0).mean() > 0.05 * wanted.abs().mean()
    assert tolerance(rebuild(store, digest).module) == BF16_TOLERANCE


def test_fp8_without_biases_is_held_to_the_tolerance_of_few_bits() -> None:
    module = nn.Sequential(nn.Linear(16, 16, bias=False))
    assert tolerance(module) == FLOAT_TOLERANCE
    fp8.convert(module, ["0"])
    assert tolerance(module) == BF16_TOLERANCE


def test_openvino_converts_once_and_again_when_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(store)
    inputs = toys.rows(toys.MODELS["mlp"][1]).inputs
    first = load(store, digest, "openvino")(inputs)
    (file,) = (store.root / "compiled" / digest).glob("*/model.bin")
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "rebuild", None)  # a second conversion would call it
        assert np.array_equal(load(store, digest, "openvino")(inputs), first)
    file.write_bytes(whole[:-1])
    assert np.array_equal(load(store, digest, "openvino")(inputs), first)
    assert file.read_bytes() == whole


def test_openvino_says_what_it_lacks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "reduce_range", lambda: False)
    wide = made(store, plan=(StaticInt8(),))
    monkeypatch.setattr(int8, "reduce_range", lambda: True)
    with pytest.raises(ExecutionError, match="without VNNI"):
        load(store, wide, "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ExecutionError, match=r"package: openvino.*pip install"):
        load(store, wide, "openvino")
