"""Quantization-aware training: it simulates what int8 does, and leaves a plain float model behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import fx, nn

from orchestrator.compression.plan import State, run_step
from orchestrator.compression.qat import rounding, weight_rounding
from orchestrator.compression.quantize import CALIBRATION_BATCH
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Qat, Recovery, StaticInt8, WeightOnlyInt4, WeightOnlyInt8
from orchestrator.config.training import Training
from orchestrator.errors import CompressionError
from orchestrator.models.build import example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.execute import of_module
from tests.compression import toys

QUICK = Training(epochs=2, batch_size=16, lr=0.01)


def trained(name: str, **settings: Any) -> tuple[nn.Module, Signature, State]:
    module, signature, _ = toys.toy(name) if name in toys.MODELS else toys.imported(name, (3, 8, 8))
    step = Qat(training=QUICK, **settings)
    return (
        module,
        signature,
        run_step(step, toys.state(module, signature), toys.context(signature.input_shape)),
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "vit"])
def test_the_result_is_a_plain_model_with_other_weights(name: str) -> None:
    before, _, state = trained(name)
    assert [type(part) for part in state.module.modules()] == [type(part) for part in before.modules()]
    assert dict(state.module.named_buffers()).keys() == dict(before.named_buffers()).keys()
    old, new = before.state_dict(), state.module.state_dict()
    assert list(old) == list(new)
    assert any(not torch.equal(old[key], new[key]) for key in old)


def test_batch_statistics_stay() -> None:
    before, _, state = trained("resnet")
    for name, buffer in before.named_buffers():
        assert torch.equal(buffer, state.module.get_buffer(name)), name


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_simulation_is_what_the_kernels_compute(name: str) -> None:
    """Nearer to them than the float model is; rows that calibrate give the ranges of both."""
    module, signature, _ = toys.toy(name)
    context = toys.context(signature.input_shape)
    step = StaticInt8(observer="minmax", rows=64)
    graph = run_step(step, toys.state(module, signature), context).module
    inputs = toys.rows(signature.input_shape).inputs
    kernels = of_module(graph, signature, "lowered")(inputs)
    plain = of_module(module, signature, "eager")(inputs)
    with rounding(module, torch.from_numpy(inputs), int8.reduce_range()):
        simulated = of_module(module, signature, "eager")(inputs)
    assert np.square(simulated - kernels).mean() < 0.8 * np.square(plain - kernels).mean()
    assert np.array_equal(of_module(module, signature, "eager")(inputs), plain)


def test_first_ranges_take_in_all_calibration_rows() -> None:
    """They lie in batches; the largest value is in the second one, the smallest in the third."""
    module, signature, _ = toys.toy("mlp")
    rows = torch.from_numpy(toys.rows(signature.input_shape, 3 * CALIBRATION_BATCH).inputs)
    rows[CALIBRATION_BATCH, 0], rows[-1, 0] = 1e4, -1e4
    first = next(part for part in module.modules() if isinstance(part, nn.Linear))
    with rounding(module, rows, narrow=False):
        low, high = float(first.low), float(first.high)  # type: ignore[arg-type]
        module(rows[:4])
        assert (float(first.low), float(first.high)) == (low, high)  # type: ignore[arg-type]
    assert low < -100
    assert high > 100


@pytest.mark.parametrize("name", ["resnet", "in_place"])
def test_the_deployed_graph_is_that_of_post_training_quantization(name: str) -> None:
    def operators(state: State) -> list[str]:
        assert isinstance(state.module, fx.GraphModule)
        lowered = int8.lower(state.module, example_rows(signature, 8))
        return [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]

    module, signature, aware = trained(name)
    context = toys.context(signature.input_shape)
    after = run_step(StaticInt8(), aware, context)
    plain = run_step(StaticInt8(), toys.state(module, signature), context)
    assert operators(after) == operators(plain)


def test_training_lowers_the_loss_of_the_int8_model() -> None:
    """On a model whose first layer has one huge channel, which leaves the others few levels."""
    module, signature, _ = toys.toy("mlp")
    with torch.no_grad():
        first, second = [part for part in module.modules() if isinstance(part, nn.Linear)][:2]
        first.weight[0] *= 30
        second.weight[:, 0] /= 30
    context = toys.context(signature.input_shape)
    rows = context.train
    assert rows is not None

    def loss(state: State) -> float:
        graph = run_step(StaticInt8(observer="minmax"), state, context).module
        outputs = torch.from_numpy(of_module(graph, signature, "lowered")(rows.inputs))
        return float(nn.functional.cross_entropy(outputs, torch.from_numpy(rows.targets)))

    start = toys.state(module, signature)
    training = Training(epochs=10, batch_size=16, lr=0.002)
    aware = run_step(Qat(training=training), start, context)
    assert loss(aware) < 0.98 * loss(start)


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only_training_computes_what_will_be_kept(bits: int) -> None:
    module, signature, _ = toys.toy("resnet")
    step = WeightOnlyInt8() if bits == 8 else WeightOnlyInt4()
    inputs = toys.rows(signature.input_shape).inputs
    plain = of_module(module, signature, "eager")(inputs)
    kept = run_step(step, toys.state(module, signature), toys.context(signature.input_shape)).module
    with weight_rounding(module, step.group, bits):
        simulated = of_module(module, signature, "eager")(inputs)
    assert np.array_equal(simulated, of_module(kept, signature, "eager")(inputs))
    assert not np.array_equal(simulated, plain)
    assert np.array_equal(of_module(module, signature, "eager")(inputs), plain)


def test_training_lowers_the_loss_of_the_int4_model() -> None:
    module, signature, _ = toys.toy("mlp")
    context = toys.context(signature.input_shape)
    rows = context.train
    assert rows is not None
    small = WeightOnlyInt4(group=32)

    def loss(state: State) -> float:
        kept = run_step(small, state, context).module
        outputs = torch.from_numpy(of_module(kept, signature, "eager")(rows.inputs))
        return float(nn.functional.cross_entropy(outputs, torch.from_numpy(rows.targets)))

    training = Training(epochs=30, batch_size=16, lr=0.01)
    start = run_step(Recovery(training=training), toys.state(module, signature), context)
    on = training.model_copy(update={"lr": 0.005})
    again = run_step(Recovery(training=on), toys.state(start.module, signature), context)
    aware = run_step(
        Qat(to="int4_weight_only", group=32, training=on), toys.state(start.module, signature), context
    )
    assert loss(aware) < loss(again)


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": 8},
        {"to": "int4_weight_only", "reduce_range": True},
    ],
)
def test_keys_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"(is|are) for"):
        Qat.model_validate(wrong)


def test_layers_that_stay_float_are_not_rounded() -> None:
    module, signature, _ = toys.toy("mlp")
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    inputs = toys.rows(signature.input_shape).inputs
    plain = of_module(module, signature, "eager")(inputs)
    for every in (names, ["body"]):  # or the module that they lie in
        with (
            pytest.raises(CompressionError, match="no convolution or linear"),
            rounding(module, torch.from_numpy(inputs), False, every),
        ):
            pass
    with rounding(module, torch.from_numpy(inputs), False, names[1:]):
        first = of_module(module, signature, "eager")(inputs)
    assert 0 < np.abs(first - plain).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("int8_static", "qat has no form of Conv1d"),
        ("int4_weight_only", "there is no weight-only form of Conv1d"),
    ],
)
def test_layers_that_cannot_be_rounded_are_named_with_the_reason(to: str, why: str) -> None:
    module = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(80, 5))
    step = Qat.model_validate({"to": to, "training": QUICK})
    state = run_step(step, toys.state(module.eval(), toys.signature((12,))), toys.context((12,)))
    assert state.decisions[-1]["left"] == {"1": why}


def test_missing_rows_are_named() -> None:
    module, signature, _ = toys.toy("mlp")
    context = toys.context(signature.input_shape, calibration=None)
    with pytest.raises(CompressionError, match="calibration rows"):
        run_step(Qat(training=QUICK), toys.state(module, signature), context)


def test_a_mistyped_layer_is_named() -> None:
    with pytest.raises(CompressionError, match="no layer to keep in float"):
        trained("mlp", keep_float=("body.first",))
