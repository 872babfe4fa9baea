"""Ranges of activations: what each observer keeps, and that outliers are handled as it says."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.compression.observers import least_error_range, percentile_range
from orchestrator.compression.plan import run_step
from orchestrator.config.steps import StaticInt8
from orchestrator.runtime.execute import of_module
from orchestrator.runtime.int8 import arguments
from tests.compression import toys

Kind = Literal["histogram", "minmax", "percentile", "mse"]
KINDS: tuple[Kind, ...] = ("histogram", "minmax", "percentile", "mse")


def quantized(step: StaticInt8, outlier: float = 0.0) -> tuple[Any, np.ndarray[Any, Any], nn.Module]:
    """The toy perceptron, calibrated on rows of which one value may be an outlier."""
    module, signature, _ = toys.toy("mlp")
    calibration = toys.rows(signature.input_shape, 256).inputs.copy()
    if outlier:
        calibration[0, 0] = outlier
    context = toys.context(signature.input_shape, calibration=calibration)
    state = run_step(step, toys.state(module, signature), context)
    return state, toys.rows(signature.input_shape, 200, seed=9).inputs, module


def scale_of_input(state: Any) -> float:
    """Of the first quantized activation: the scaled rows."""
    return float(arguments(state.module)[0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_observer_gives_answers_near_the_floats(kind: Kind) -> None:
    state, inputs, module = quantized(StaticInt8(observer=kind))
    wanted = of_module(module, state.signature, "eager")(inputs)
    got = of_module(state.module, state.signature, "lowered")(inputs)
    assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)


def test_minmax_keeps_an_outlier_and_percentile_gives_it_up() -> None:
    wide, _, _ = quantized(StaticInt8(observer="minmax"), outlier=6000.0)
    tight, _, _ = quantized(StaticInt8(observer="percentile", percentile=99.9), outlier=6000.0)
    plain, _, _ = quantized(StaticInt8(observer="minmax"))
    assert scale_of_input(wide) > 10 * scale_of_input(plain)
    assert scale_of_input(tight) < 1.2 * scale_of_input(plain)


def test_least_error_lies_nearer_to_the_floats_than_minmax_when_there_is_an_outlier() -> None:
    errors = {}
    for kind in ("minmax", "mse"):
        state, inputs, module = quantized(StaticInt8(observer=kind), outlier=2000.0)
        wanted = of_module(module, state.signature, "eager")(inputs)
        got = of_module(state.module, state.signature, "lowered")(inputs)
        errors[kind] = float(np.square(got - wanted).mean())
    assert errors["mse"] < errors["minmax"]


def test_percentile_range_of_a_known_histogram() -> None:
    histogram = torch.tensor([1.0, 0, 0, 98, 0, 0, 0, 0, 0, 1])
    assert percentile_range(histogram, 0.0, 10.0, 1.0) == (0.0, 10.0)
    assert percentile_range(histogram, 0.0, 10.0, 0.98) == pytest.approx((3.0, 4.0))
    assert percentile_range(torch.tensor([90.0, 10]), 0.0, 2.0, 0.99) == (0.0, 2.0)
    assert percentile_range(torch.zeros(4), 0.0, 2.0, 0.9) == (0.0, 2.0)


def test_least_error_range_weighs_cutting_against_rounding() -> None:
    bulk = torch.zeros(1000)
    bulk[:100] = 1000.0
    lonely = bulk.clone()
    lonely[-1] = 1.0
    heavy = bulk.clone()
    heavy[-1] = 1000.0
    # One value at the top is cut to serve the many; a thousand of them are not.
    assert least_error_range(lonely, 0.0, 10.0, 3)[1] < 5
    assert least_error_range(heavy, 0.0, 10.0, 255)[1] == pytest.approx(10.0)
    assert least_error_range(bulk, 1.0, 1.0, 255) == (1.0, 1.0)


def test_small_weights_keep_all_their_bits() -> None:
    """torchao's recipe holds weight scales to 2^-12: weights below 0.03 would lose bits."""
    module, signature, _ = toys.toy("mlp")
    with torch.no_grad():
        first, second = [part for part in module.modules() if isinstance(part, nn.Linear)][:2]
        first.weight.mul_(1e-3)
        assert first.bias is not None
        first.bias.mul_(1e-3)
        second.weight.mul_(1e3)
    state = run_step(StaticInt8(), toys.state(module, signature), toys.context(signature.input_shape))
    inputs = toys.rows(signature.input_shape, 200, seed=9).inputs
    wanted = of_module(module, signature, "eager")(inputs)
    got = of_module(state.module, signature, "lowered")(inputs)
    assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)
