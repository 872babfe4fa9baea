"""int8 and bf16: what is quantized, what stays float, and that files really shrink."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import fx, nn

from orchestrator.compression import mixed
from orchestrator.compression.audit import AS_ASKED, audit, coverage
from orchestrator.compression.plan import State, apply_plan, run_step
from orchestrator.config.model import ResNet9, ResNet9Kwargs
from orchestrator.config.signature import Signature
from orchestrator.config.steps import (
    Bf16,
    ChannelPruning,
    DynamicInt8,
    MagnitudePruning,
    StaticInt8,
    WeightOnlyInt8,
)
from orchestrator.errors import CompressionError, ExecutionError
from orchestrator.measure.cost import count
from orchestrator.models.base import weights_of
from orchestrator.models.build import build, example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.execute import load, of_module
from orchestrator.store.store import Store
from tests.compression import toys

ATTENTION = {
    "vit": ["body.blocks.0.attention"],
    "torch_encoder": ["body.encoder.layers.0.self_attn", "body.encoder.layers.1.self_attn"],
}


def quantized(name: str, step: StaticInt8 | DynamicInt8) -> tuple[State, fx.GraphModule]:
    module, signature, _ = toys.toy(name) if name in toys.MODELS else toys.imported(name, _shape(name))
    state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
    assert isinstance(state.module, fx.GraphModule)
    return state, state.module


def _shape(name: str) -> tuple[int, ...]:
    return {
        "functional_linear": (12,),
        "einsum": (12,),
        "tokens": (1, 8, 8),
        "relu_sum": (3, 8, 8),
        "positions": (12,),
        "upward": (3, 8, 8),
        "torch_encoder": (3, 16, 16),
    }[name]


def operators(graph: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_scaling_stays_float() -> None:
    _, graph = quantized("cnn", StaticInt8())
    calls = operators(graph)
    first = next(i for i, call in enumerate(calls) if "quantize_per_tensor" in call)
    assert [call for call in calls[:first] if "dequantize_per_channel" not in call] == [
        "aten.to.dtype",
        "aten.sub.Tensor",
        "aten.div.Tensor",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "cnn",
        "resnet",
        "resnet9",
        "mirror",
        "airbench",
        "vit",
        "functional_linear",
        "torch_encoder",
        "tokens",
        "relu_sum",
        "positions",
    ],
)
def test_static_covers_every_convolution_and_linear(name: str) -> None:
    state, graph = quantized(name, StaticInt8())
    found = coverage(graph, state.signature)
    assert found["left"] == 0
    if name in ATTENTION:
        why = "products of two activations have no int8 kernel"
        assert found["fell_back"] == [{"layer": layer, "why": why} for layer in ATTENTION[name]]
        # Four tokens of 16 features; the patches have 192, a block's hidden layer 32.
        blocks = len(ATTENTION[name])
        layers = 4 * 16 * (192 + blocks * (4 * 16 + 2 * 32)) + 16 * toys.CLASSES
        assert found["share"] == pytest.approx(layers / (layers + blocks * 2 * 4 * 4 * 16))
    else:
        assert found["fell_back"] == []
        assert found["share"] == 1.0


def test_products_without_a_layer_are_told_apart() -> None:
    _, graph = quantized("einsum", StaticInt8())
    found = coverage(graph, toys.signature((12,)))
    assert (found["kernels"], found["left"]) == (2, 1)
    assert found["fell_back"] == [
        {"layer": "body", "why": "the quantizer has no int8 form of it"},
        {"layer": "body", "why": "products of two activations have no int8 kernel"},
    ]
    layers, products = 12 * 48 + 16 * toys.CLASSES, 2 * 3 * 3 * 16 + 3 * 16 * 16
    assert found["share"] == pytest.approx(layers / (layers + products))


def test_transposed_convolutions_stay_float_and_are_told() -> None:
    state, graph = quantized("upward", StaticInt8())
    found = coverage(graph, state.signature)
    assert (found["kernels"], found["left"]) == (2, 1)
    assert found["fell_back"] == [{"layer": "body.up", "why": "the quantizer has no int8 form of it"}]
    down, up, head = 2 * 2 * 16 * 3 * 4 * 4, 2 * 2 * 16 * 4 * 4 * 4, 8 * toys.CLASSES
    assert found["share"] == pytest.approx((down + head) / (down + up + head))
    module, signature, _ = toys.imported("upward", (3, 8, 8))
    assert count(module, signature).macs == down + up + head


def test_an_outlying_row_of_dynamic_int8_changes_no_other_answer() -> None:
    """Rows of a call may be of several clients."""
    module, signature, _ = toys.toy("mlp")
    state = run_step(DynamicInt8(), toys.state(module, signature), toys.context(signature.input_shape))
    executable = of_module(state.module, signature, "lowered")
    rows = toys.rows(signature.input_shape, 8).inputs
    wanted = executable(rows)
    rows[3] *= 1e6
    found = executable(rows)
    others = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(found[others], wanted[others], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(executable(rows[:1]), wanted[:1], rtol=1e-5, atol=1e-6)


def test_dynamic_covers_linears_and_leaves_convolutions_as_they_are() -> None:
    state, graph = quantized("cnn", DynamicInt8())
    found = coverage(graph, state.signature)
    assert (found["kernels"], found["left"]) == (2, 2)
    names = [name for name, part in toys.toy("cnn")[0].named_modules() if isinstance(part, nn.Conv2d)]
    assert [row["layer"] for row in found["fell_back"]] == names
    # 8x8x9 + 4x4x8x16x9 multiply-accumulates of convolutions against 2x2x16x16 + 16x5 of linears.
    convolutions, linears = 8 * 8 * 9 * 8 + 4 * 4 * 8 * 16 * 9, 2 * 2 * 16 * 16 + 16 * toys.CLASSES
    assert found["share"] == pytest.approx(linears / (convolutions + linears))
    assert not any("conv" in call and "choose_qparams" in call for call in operators(graph))


def test_lowered_graph_has_no_view_and_no_checks() -> None:
    state, graph = quantized("cnn", StaticInt8())
    calls = operators(int8.lower(graph, example_rows(state.signature, 8)))
    assert not any(call.startswith(("aten.view", "aten._assert")) for call in calls)
    assert any(call.startswith("onednn.qconv") for call in calls)


def test_max_pooling_stays_in_int8_and_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    state, graph = quantized("cnn", StaticInt8())
    lowered = int8.lower(graph, example_rows(state.signature, 8))
    calls = operators(lowered)
    assert calls.count("quantized.max_pool2d.default") == 2
    assert not any("dequantize" in call for call in calls)
    inputs = torch.from_numpy(toys.rows((1, 8, 8)).inputs)
    with torch.no_grad():
        found = lowered(inputs)
        # Against the same kernels with pooling in float: the exact graph may round a convolution otherwise.
        monkeypatch.setattr(int8, "move_integers", lambda _: None)
        pooled_in_float = int8.lower(graph, example_rows(state.signature, 8))
        assert "quantized.max_pool2d.default" not in operators(pooled_in_float)
        assert torch.equal(found, pooled_in_float(inputs))


@pytest.mark.parametrize("kind", [StaticInt8, DynamicInt8])
def test_activations_of_8_bits_are_refused_without_vnni(
    kind: type[StaticInt8 | DynamicInt8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN's sums overflow there: answers would be wrong by percents, in silence."""
    monkeypatch.setattr(int8, "reduce_range", lambda: False)
    state, wide = quantized("mlp", kind())
    narrow_state, narrow = quantized("mlp", kind(reduce_range=True))
    assert [made.decisions[-1]["reduce_range"] for made in (state, narrow_state)] == [False, True]
    monkeypatch.setattr(int8, "reduce_range", lambda: True)
    example = example_rows(state.signature, 8)
    with pytest.raises(ExecutionError, match=r"without VNNI.*255.*reduce_range: true"):
        int8.lower(wide, example)
    int8.lower(narrow, example)
    assert quantized("mlp", kind())[0].decisions[-1]["reduce_range"], "made on such a CPU"


def test_batch_and_side_of_equal_size_are_not_confused() -> None:
    """Traced with 8 rows of 8x8 pixels."""
    state, graph = quantized("cnn", StaticInt8())
    lowered = int8.lower(graph, example_rows(state.signature, 8))
    inputs = torch.from_numpy(toys.rows((1, 8, 8)).inputs)
    with torch.no_grad():
        for batch in (1, 3, 8, 33):
            assert torch.allclose(lowered(inputs[:batch]), graph(inputs[:batch]), atol=1e-4)


@pytest.mark.parametrize("step", [StaticInt8(), DynamicInt8()])
def test_accuracy_of_int8_is_near_the_parents(step: StaticInt8 | DynamicInt8) -> None:
    module, signature, _ = toys.toy("resnet")
    state, _ = quantized("resnet", step)
    inputs = toys.rows((3, 16, 16)).inputs
    wanted = of_module(module, signature, "eager")(inputs)
    got = of_module(state.module, signature, "lowered")(inputs)
    assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", ["int8_static", "bf16"])
def test_regression_ends_in_raw_float_units(kind: str) -> None:
    settings, shape = toys.MODELS["mlp"]
    signature = toys.signature(shape, "regression")
    module = toys.model(settings, signature)
    step = StaticInt8() if kind == "int8_static" else Bf16()
    state = run_step(step, toys.state(module, signature), toys.context(shape))
    inputs = toys.rows(shape).inputs
    wanted = of_module(module, signature, "eager")(inputs)
    got = of_module(state.module, signature, "lowered" if kind == "int8_static" else "eager")(inputs)
    assert np.abs(got - wanted).max() < 0.05 * np.ptp(wanted)


def test_bytes_shrink_as_the_types_say(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    settings = ResNet9(kwargs=ResNet9Kwargs(width=16))
    signature = toys.signature((3, 16, 16))
    module = toys.model(settings, signature)
    parent = toys.put(store, module, signature, settings)
    sizes = {
        step.kind: store.artifact_bytes(apply_plan(store, parent, (step,), toys.context((3, 16, 16))))
        for step in (Bf16(), StaticInt8())
    }
    full = store.artifact_bytes(parent)
    assert full / sizes["bf16"] > 1.9
    assert full / sizes["int8_static"] > 3.8


def test_bf16_keeps_scaling_norms_and_outputs_in_float32() -> None:
    module, signature, _ = toys.toy("resnet")
    state = run_step(Bf16(), toys.state(module, signature), toys.context((3, 16, 16)))
    for part in state.module.modules():
        wanted = torch.bfloat16 if isinstance(part, nn.Conv2d | nn.Linear) else torch.float32
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            assert not tensor.is_floating_point() or tensor.dtype == wanted
    assert state.module(example_rows(signature, 2)).dtype == torch.float32


def test_pruned_zeros_stay_zero_in_int8(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("mlp")
    parent = toys.put(store, module, signature, settings)
    digest = apply_plan(store, parent, (MagnitudePruning(amount=0.5), StaticInt8()), toys.context((12,)))
    facts = audit(store, digest)
    assert facts["zeros"] >= 0.5
    assert facts["int8"]["share"] == 1.0
    assert not facts["masked_only"]
    masked = apply_plan(store, parent, (MagnitudePruning(amount=0.5),), toys.context((12,)))
    assert audit(store, masked)["masked_only"]
    assert not audit(store, parent)["masked_only"]


def test_audit_tells_what_pruning_saved(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("resnet")
    parent = toys.put(store, module, signature, settings)
    plan = (ChannelPruning(amount=0.5),)
    digest = apply_plan(store, parent, plan, toys.context((3, 16, 16)))
    before, after = audit(store, parent), audit(store, digest)
    assert before["int8"] is None
    assert after["macs"] < 0.35 * before["macs"]
    assert after["params"] < 0.35 * before["params"]
    assert 0 < after["peak_bytes"] < before["peak_bytes"]
    assert not after["masked_only"]
    assert after["bytes"] == store.artifact_bytes(digest) < before["bytes"]


@pytest.mark.parametrize(
    ("factory", "shape", "sentence"),
    [
        ("convolutions_only", (3, 8, 8), "would quantize nothing"),
        ("branching", (12,), "cannot trace the model"),
    ],
)
def test_dynamic_int8_refuses(factory: str, shape: tuple[int, ...], sentence: str) -> None:
    module, signature, _ = toys.imported(factory, shape)
    with pytest.raises(CompressionError, match=sentence):
        run_step(DynamicInt8(), toys.state(module, signature), toys.context(shape))


def test_what_cannot_be_lowered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> None:
        raise AssertionError(len(args))

    monkeypatch.setattr(int8, "freezing_passes", failing)
    with pytest.raises(CompressionError, match="cannot be lowered \\(AssertionError: 2\\)"):
        quantized("mlp", StaticInt8())


def test_what_observers_fail_on_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(prepared: fx.GraphModule) -> None:
        raise NotImplementedError(type(prepared).__name__)

    monkeypatch.setattr(int8, "convert_pt2e", failing)
    with pytest.raises(CompressionError, match="no int8 graph can be made \\(NotImplementedError: Graph"):
        quantized("mlp", StaticInt8())


@pytest.mark.parametrize("rows", [None, np.zeros((0, 12), np.float32)])
def test_static_int8_needs_calibration_rows(rows: np.ndarray | None) -> None:
    module, signature, _ = toys.toy("mlp")
    with pytest.raises(CompressionError, match="needs calibration rows"):
        run_step(StaticInt8(), toys.state(module, signature), toys.context((12,), calibration=rows))


def test_weights_are_packed_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Packed for another shape than the one that runs, oneDNN would pack them again in each call."""
    signature = toys.signature((3, 32, 32))
    module = build(ResNet9(kwargs=ResNet9Kwargs(width=12)), signature, seed=0)
    state = run_step(StaticInt8(), toys.state(module, signature), toys.context((3, 32, 32)))
    assert isinstance(state.module, fx.GraphModule)
    rows = example_rows(signature, 32)
    lowered = int8.lower(state.module, rows)
    with torch.no_grad():
        lowered(rows)
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            lowered(rows)
    calls = [line.split(",") for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    assert any("convolution" in call for call in calls)
    assert not [call for call in calls if "reorder" in call and any("src:s8" in part for part in call)]


@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_named_layers_stay_float(model: str, tmp_path: Path) -> None:
    module, signature, settings = toys.toy(model)
    names = [name.removesuffix(".weight") for name in weights_of(module)]
    context = toys.context(signature.input_shape)
    step = StaticInt8(rows=32, keep_float=(names[0], names[-1]))
    state = run_step(step, toys.state(module, signature), context)
    assert isinstance(state.module, fx.GraphModule)
    found = coverage(state.module, signature, dict.fromkeys(step.keep_float, AS_ASKED))
    assert found["left"] == 2
    assert found["fell_back"] == [
        {"layer": name, "why": "kept in float, as asked"} for name in (names[0], names[-1])
    ]
    assert found["kernels"] == len(names) - 2
    assert state.decisions[-1]["keep_float"] == [names[0], names[-1]]
    store = Store(tmp_path / "store")
    parent = toys.put(store, module, signature, settings)
    digest = apply_plan(store, parent, (step,), context)
    rows = toys.rows(signature.input_shape).inputs[:8]
    fresh = load(store, digest, "lowered", batch=8)(rows)
    assert np.array_equal(fresh, of_module(state.module, signature, "lowered", batch=8)(rows))


def test_named_linears_of_dynamic_int8_stay_float(tmp_path: Path) -> None:
    module, signature, settings = toys.toy("mlp")
    first, *others = [name.removesuffix(".weight") for name in weights_of(module)]
    step, context = DynamicInt8(keep_float=(first,)), toys.context((12,))
    state = run_step(step, toys.state(module, signature), context)
    assert isinstance(state.module, fx.GraphModule)
    found = coverage(state.module, signature, {first: "asked"})
    assert (found["kernels"], found["left"]) == (len(others), 1)
    store = Store(tmp_path / "store")
    parent = toys.put(store, module, signature, settings)
    digest = apply_plan(store, parent, (step,), context)
    rows = toys.rows((12,)).inputs[:8]
    fresh = load(store, digest, "lowered", batch=8)(rows)
    assert np.array_equal(fresh, of_module(state.module, signature, "lowered", batch=8)(rows))
    assert "keep_float" not in DynamicInt8().plain()


@pytest.mark.parametrize("kind", [StaticInt8, DynamicInt8, WeightOnlyInt8])
def test_an_unknown_layer_is_refused(kind: type[StaticInt8 | DynamicInt8 | WeightOnlyInt8]) -> None:
    module, signature, _ = toys.toy("mlp")
    with pytest.raises(CompressionError, match=r"no layer to keep in float of this name: body\.nine"):
        run_step(kind(keep_float=("body.nine",)), toys.state(module, signature), toys.context((12,)))


def outlying() -> tuple[nn.Module, Signature]:
    """A net whose second layer int8 ruins: one input of it is a thousand times as large as the others."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, toys.CLASSES)
    ).eval()
    first, second, _ = (part.weight for part in net if isinstance(part, nn.Linear))
    with torch.no_grad():
        first[0] = first[0].abs() * 1000
        second[:, 0] = 0
    return net, toys.signature((12,))


def test_layers_are_kept_until_the_bound_holds() -> None:
    module, signature = outlying()
    part = toys.rows((12,), count=256)
    with torch.no_grad():
        labels = module(torch.tensor(part.inputs)).argmax(1).numpy()
    part = replace(part, targets=labels)
    context = toys.context((12,), validation=part, calibration=part.inputs)
    plain = run_step(StaticInt8(), toys.state(module, signature), context)
    bounded = run_step(StaticInt8(max_drop=0.05), toys.state(module, signature), context)
    decision = bounded.decisions[-1]
    assert decision["drop_all_int8"] > 0.05 >= decision["drop"]
    assert decision["keep_float"] == ["2"]
    assert isinstance(plain.module, fx.GraphModule)
    assert isinstance(bounded.module, fx.GraphModule)
    assert coverage(bounded.module, signature)["kernels"] == coverage(plain.module, signature)["kernels"] - 1


def test_with_a_confidence_the_upper_bound_must_hold() -> None:
    """Labels are the model's own answers, so the drop is the share of rows that change."""
    net, signature = outlying()
    part = toys.rows((12,), count=256)
    with torch.no_grad():
        labels = net(torch.tensor(part.inputs)).argmax(1).numpy()
    context = toys.context((12,), validation=replace(part, targets=labels), calibration=part.inputs)
    state = toys.state(net, signature)
    drop = run_step(StaticInt8(max_drop=0.05), state, context).decisions[-1]["drop"]
    surer = StaticInt8(max_drop=drop + 0.03, confidence=0.95)
    decision = run_step(surer, state, context).decisions[-1]
    assert decision["drop"] < decision["bound"] <= drop + 0.03
    with pytest.raises(CompressionError, match=r"at 95% confidence 0\.\d+, with 2 layers in float"):
        run_step(StaticInt8(max_drop=0.005, confidence=0.95), state, context)
    with pytest.raises(ValidationError, match="goes with 'max_drop'"):
        StaticInt8(confidence=0.95)


def test_layers_of_a_module_that_stays_float_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, signature = outlying()
    layers = list(flat.children())
    module = nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:])
    part = toys.rows((12,), count=256)
    with torch.no_grad():
        labels = module(torch.tensor(part.inputs)).argmax(1).numpy()
    context = toys.context((12,), validation=replace(part, targets=labels), calibration=part.inputs)
    tried: list[list[str]] = []

    def by_sensitivity(names: list[str], *_: object) -> list[str]:
        tried.append(names)
        return []

    monkeypatch.setattr(mixed, "_by_sensitivity", by_sensitivity)
    with pytest.raises(CompressionError, match="int8 drops"):
        run_step(StaticInt8(max_drop=0.0, keep_float=("0",)), toys.state(module, signature), context)
    assert tried == [["1", "3"]]


def test_a_bound_that_holds_keeps_everything_in_int8() -> None:
    module, signature, _ = toys.toy("mlp")
    state = run_step(StaticInt8(max_drop=1.0), toys.state(module, signature), toys.context((12,)))
    assert "keep_float" not in state.decisions[-1]
    assert state.decisions[-1]["drop"] <= 1.0


def test_a_bound_that_nothing_keeps_is_refused() -> None:
    module, signature = outlying()
    part = toys.rows((12,), count=256)
    with torch.no_grad():
        labels = module(torch.tensor(part.inputs)).argmax(1).numpy()
    context = toys.context((12,), validation=replace(part, targets=labels), calibration=part.inputs[:2])
    only = StaticInt8(max_drop=0.0, keep_float=("0", "4"))
    with pytest.raises(CompressionError, match=r"int8 drops [01]\.\d+ on validation rows, and still"):
        run_step(only, toys.state(module, signature), context)
