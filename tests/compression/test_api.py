"""`compress` from plain Python: on a module of the user's own, and on an artifact of a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.compression import Variant, compress
from orchestrator.compression.audit import decided, told
from orchestrator.compression.gate import gate
from orchestrator.config.measure import LatencySettings, Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.search import Promise
from orchestrator.config.signature import Signature
from orchestrator.config.steps import ChannelPruning
from orchestrator.data.arrays import from_arrays
from orchestrator.errors import CompressionError, ConfigError, DataError
from orchestrator.measure.latency import Latency
from orchestrator.models.build import build
from orchestrator.runtime.execute import load
from orchestrator.store.store import Store
from tests.compression import toys

QUICK = LatencySettings(blocks=5, block_ms=1.0)


def images(count: int = 120) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    rows = rng.integers(0, 80, (count, 3, 8, 8)) + 60 * labels[:, None, None, None]
    return rows.astype(np.uint8), labels


def own_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def test_three_lines_on_a_module_of_ones_own(tmp_path: Path) -> None:
    module, data = own_module(), images()
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = {"epochs": 2, "batch_size": 32, "lr": 0.01}
    steps: list[dict[str, Any]] = [
        {"kind": "prune_channels", "amount": 0.5},
        {"kind": "recover", "training": training},
        {"kind": "int8_static"},
    ]
    variant = compress(module, steps, data)
    assert [step.kind for step in variant.plan] == ["prune_channels", "recover", "int8_static"]
    answers = variant(data[0][:7])
    assert answers.shape == (7, 3)
    assert np.isfinite(answers).all()
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in kept.items())
    file = variant.export(tmp_path / "small.pt2")
    assert file.stat().st_size > 0
    assert np.array_equal(variant(data[0][:7]), answers)


def test_the_audit_says_what_changed() -> None:
    data = images()
    found = compress(own_module(), [ChannelPruning(amount=0.5)], data).audit((1, 4), QUICK)
    assert found.facts["macs"] < found.baseline["macs"]
    assert found.facts["params"] < found.baseline["params"]
    assert found.facts["bytes"] < found.baseline["bytes"]
    assert 0 < found.facts["peak_bytes"] < found.baseline["peak_bytes"]
    assert set(found.latencies) == {1, 4}
    assert found.gate.smaller
    assert "of the bytes" in str(found)
    (step,) = found.facts["decided"]
    assert step == {"kind": "prune_channels", "channels": step["channels"], "removed": step["removed"]}
    assert f"prune_channels  channels {step['channels']}, removed {step['removed']}" in str(found)


def test_what_a_step_reached_is_told_without_what_rebuilding_needs() -> None:
    decisions: list[dict[str, Any]] = [
        {"kind": "factorize", "ranks": {"a": 3}, "left": {"b": "saves nothing"}},
        {"kind": "prune_channels", "removed": {"a": [1]}, "reached": {"macs": 0.578}},
        {"kind": "int8_static", "arguments": [[1, 2]], "keep_float": ["head"], "drop": 0.00123456},
    ]
    first, pruned, second = decided(decisions)
    assert first == {"kind": "factorize", "left": {"b": "saves nothing"}}
    assert told(first) == "left b (saves nothing)"
    assert told(pruned) == "reached macs (0.578)"
    assert told(second) == "keep float head, drop 0.001235"


def test_an_audit_may_be_in_another_execution(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    settings, part = Mlp(kwargs=MlpKwargs(widths=(16,))), toys.rows((12,))
    data = from_arrays(part.inputs, part.targets)
    module = build(settings, data.signature, seed=0)
    variant = compress(module, [], data, model=settings)
    found = variant.audit((4,), QUICK, execution="openvino")
    assert found.latencies[4].execution == "openvino"
    store = Store(tmp_path)
    stored = compress(variant.save(store), [], data, store=store)
    stored.audit((4,), QUICK, execution="openvino")
    assert list((tmp_path / "compiled" / str(stored.digest)).iterdir())
    with pytest.raises(CompressionError, match="model is missing"):
        compress(module, [], data).audit((4,), QUICK, execution="openvino")


@pytest.mark.parametrize(
    ("amount", "passes", "said"),
    [(0.1, False, "masked only: 10% of the weights are zero"), (0.6, True, "masked: its zeros are left out")],
)
def test_a_masked_model_is_a_smaller_file_or_refused(amount: float, passes: bool, said: str) -> None:
    plan = [{"kind": "prune_magnitude", "amount": amount}]
    found = compress(own_module(), plan, images()).audit((4,), QUICK)
    assert found.facts["masked_only"]
    assert found.facts["zeros"] == pytest.approx(amount, abs=0.01)
    judged = gate(found.facts, found.baseline, {4: _latency(0.95, 1.05)})
    assert judged.passes is passes
    assert judged.smaller is passes
    assert said in judged.reason


def _latency(low: float, high: float) -> Latency:
    return Latency(4, 1, "eager", 1.0, (0.9, 1.1), 1.2, (low + high) / 2, (low, high))


@pytest.mark.parametrize(
    ("facts", "interval", "passes", "said"),
    [
        ({}, (1.1, 1.3), True, "1.20 times as fast at batch 4"),
        ({"bytes": 60}, (0.9, 1.1), True, "60% of the bytes"),
        ({"bytes": 60}, (0.7, 0.9), True, "slower: 0.80 times as fast at batch 4 (0.70 to 0.90)"),
        ({}, (0.9, 1.1), False, "it computes as much as before"),
        ({"macs": 50}, (0.9, 1.1), False, "too small for fewer operations to show"),
        ({"int8": {"share": 0.25}}, (0.9, 1.1), False, "only 25% of its products run in int8"),
    ],
)
def test_the_gate_passes_gains_beyond_the_noise(
    facts: dict[str, Any], interval: tuple[float, float], passes: bool, said: str
) -> None:
    before = {"bytes": 100, "macs": 100, "zeros": 0.0, "int8": None, "fp8": None}
    judged = gate({**before, **facts}, before, {4: _latency(*interval)})
    assert judged.passes is passes
    assert said in judged.reason


def test_the_gate_says_that_a_tiny_int8_model_is_slower() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 256)).astype(np.float32)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 5))
    found = compress(module, [{"kind": "int8_static"}], (rows, np.arange(100) % 5)).audit((1,), QUICK)
    assert found.latencies[1].ratio_ci[1] < 1
    assert found.gate.smaller
    assert "slower: 0." in found.gate.reason


def test_without_settings_a_variant_runs_but_is_not_saved(tmp_path: Path) -> None:
    variant = compress(own_module(), [ChannelPruning(amount=0.5)], images())
    with pytest.raises(CompressionError, match=r"model is missing.*model=Mlp\(\.\.\.\)"):
        variant.save(tmp_path / "store")


def test_settings_may_be_a_mapping(tmp_path: Path) -> None:
    settings, part = {"factory": "mlp", "kwargs": {"widths": (16,)}}, toys.rows((12,))
    data = from_arrays(part.inputs, part.targets)
    module = build(Mlp(kwargs=MlpKwargs(widths=(16,))), data.signature, seed=0)
    variant = compress(module, [], data, model=settings)
    assert variant.model == Mlp(kwargs=MlpKwargs(widths=(16,)))
    assert variant.save(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"widhts.*did you mean"):
        compress(module, [], data, model={"factory": "mlp", "kwargs": {"widhts": (16,)}})


def test_with_settings_it_is_saved_and_comes_back_bit_equal(tmp_path: Path) -> None:
    settings = Mlp(kwargs=MlpKwargs(widths=(32, 16)))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 6)).astype(np.float32)
    data = (rows, np.arange(90) % 3)
    module = build(settings, _flat(), seed=0)
    variant = compress(
        module, [{"kind": "prune_channels", "amount": 0.5}, {"kind": "int8_static"}], data, model=settings
    )
    digest = variant.save(tmp_path / "store", "mine/small")
    store = Store(tmp_path / "store", create=False)
    assert store.ref("mine/small") == digest
    assert np.array_equal(load(store, digest, "lowered")(rows[:9]), variant(rows[:9]))
    parent = store.manifest(digest).parents[0]
    assert store.manifest(parent).plan == ()

    again = compress("mine/small", [], data, store=store)
    assert again.digest == digest
    further = compress(parent, [ChannelPruning(amount=0.25)], data, store=store)
    assert further.digest is not None
    assert further.save(store, "mine/other") == further.digest
    with pytest.raises(CompressionError, match="build another model"):
        _other(variant).save(tmp_path / "store")


def test_int8_is_of_the_module_that_was_given(tmp_path: Path) -> None:
    """Layers of equal shapes, but another activation than the settings build."""
    settings, part = Mlp(kwargs=MlpKwargs(widths=(16,))), toys.rows((12,))
    data = from_arrays(part.inputs, part.targets)
    module = build(settings, data.signature, seed=0).eval()
    plan = [{"kind": "int8_static"}]
    compress(module, plan, data, model=settings)
    (name,) = (name for name, one in module.named_modules() if isinstance(one, nn.ReLU))
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Tanh())
    variant = compress(module, plan, data, model=settings)
    with torch.no_grad():
        wanted = module(torch.tensor(part.inputs)).numpy()
    assert np.linalg.norm(variant(part.inputs) - wanted) < 0.05 * np.linalg.norm(wanted)
    with pytest.raises(CompressionError, match=r"build another model.*answers otherwise"):
        variant.save(tmp_path)


def test_a_promise_may_be_of_a_metric_of_ones_own() -> None:
    path = f"{__name__}:right"
    variant = compress(own_module(), [ChannelPruning(amount=0.5)], images(), allowed=(path,))
    rows, targets = images()
    assert variant.promise(rows, targets, metric=Metric(name=path)).status


def right(outputs: np.ndarray, targets: np.ndarray) -> float:
    """A metric."""
    return float((outputs.argmax(1) == targets).mean())


def _other(variant: Variant) -> Variant:
    return replace(variant, origin=Mlp(kwargs=MlpKwargs(widths=(8,))))


def _flat() -> Signature:
    return Signature(
        task="classification",
        input_shape=(6,),
        input_dtype="float32",
        outputs=3,
        classes=("0", "1", "2"),
        mean=(0.0,) * 6,
        std=(1.0,) * 6,
    )


def test_a_model_of_ones_own_code_is_saved(tmp_path: Path) -> None:
    module, _, settings = toys.imported("tied", (12,))
    part = toys.rows((12,))
    factory = f"{toys.__name__}:tied"
    variant = compress(
        module.get_submodule("body"), [], (part.inputs, part.targets), model=settings, allowed=[factory]
    )
    assert Store(tmp_path).has(variant.save(tmp_path))
    assert variant.allowed == [factory]


def test_rows_that_the_type_cannot_hold_are_refused() -> None:
    """Pixels of 0 to 1 would all be black, and two models agree on black images."""
    variant = compress(own_module(), [], images())
    rows, labels = images(30)
    assert np.array_equal(variant(rows.astype(np.float64)), variant(rows))
    for wrong in (rows / 255, rows.astype(np.int64) - 200, np.full(rows.shape, np.nan)):
        with pytest.raises(DataError, match="raw rows of uint8"):
            variant(wrong)
        with pytest.raises(DataError, match="raw rows of uint8"):
            variant.promise(wrong, labels)


def test_regression_and_bad_requests() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 5)).astype(np.float32)
    module = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))
    variant = compress(module, [ChannelPruning(amount=0.5)], (rows, rows[:, :2]))
    assert variant.signature.task == "regression"
    with torch.no_grad():
        assert variant(rows[:4]).shape == module(torch.from_numpy(rows[:4])).shape
    with pytest.raises(ConfigError, match=r"the plan: plan\.0: .*'prune'"):
        compress(module, [{"kind": "prune"}], (rows, rows[:, :2]))
    with pytest.raises(ConfigError, match="needs data"):
        compress(module, [])
    with pytest.raises(ConfigError, match="needs the store"):
        compress("a/b", [])
    with pytest.raises(CompressionError, match="cannot follow"):
        compress(module, [{"kind": "int8_static"}, ChannelPruning(amount=0.5)], (rows, rows[:, :2]))


def test_arrays_are_taken_as_they_are() -> None:
    data = images(40)
    module = own_module()
    variant = compress(module, [], data)
    with torch.no_grad():
        direct = module(torch.from_numpy(data[0][:5]).float()).numpy()
    assert np.allclose(variant(data[0][:5]), direct, atol=1e-5)
    assert variant.signature.outputs != toys.CLASSES


def test_a_promise_is_told_on_rows_that_nothing_saw() -> None:
    module, data = own_module(), images()
    variant = compress(module, [{"kind": "int8_static"}], data)
    rows, _ = images(300)
    with torch.no_grad():
        answers = module(torch.from_numpy(rows).float()).argmax(1).numpy()
    kept = variant.promise(rows, answers, Promise(max_drop=0.2))
    assert kept.status == "holds"
    assert kept.rows == 300
    assert 0 <= kept.drop <= kept.bound <= 0.2
    asked = variant.promise(rows, answers, Promise(max_drop=0.2), looks=4)
    assert asked.confidence == pytest.approx(0.9875)
    assert asked.bound > kept.bound
    assert "at 98.75% confidence" in asked.reason
    with pytest.raises(ConfigError, match="once or more"):
        variant.promise(rows, answers, looks=0)
    assert "need" in variant.promise(rows[:5], answers[:5], Promise(max_drop=0.001)).reason


def test_a_broken_variant_fails_its_promise() -> None:
    module, data = own_module(), images()
    variant = compress(module, [{"kind": "int8_static"}], data)
    rows, _ = images(300)
    with torch.no_grad():
        outputs = module(torch.from_numpy(rows).float())
        answers = outputs.argmax(1).numpy()
        common = outputs.argmax(1).mode().values
        list(module.parameters())[-1].sub_(100 * torch.nn.functional.one_hot(common, 3))
    broken = replace(compress(module, [{"kind": "int8_static"}], data), before=variant.before)
    assert broken.promise(rows, answers, Promise(max_drop=0.01)).status == "fails"
