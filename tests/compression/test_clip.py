"""Clipping of weights."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.compression.plan import run_step
from orchestrator.config.steps import Clipping
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.training.limits import limits, rounded
from tests.compression import toys


def heavy_tailed() -> torch.Tensor:
    """Sixteen rows of normal weights, one outlier in each."""
    weight = torch.randn(16, 400, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 20.0
    return weight


def error(weight: torch.Tensor, limit: torch.Tensor, bits: int) -> torch.Tensor:
    return (rounded(weight, limit.flatten().expand(len(weight)), bits) - weight).square().sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_the_least_error_is_no_larger_than_that_of_the_largest_weight(bits: int, per: str) -> None:
    weight = heavy_tailed()
    limit = limits(weight, Clipping(bits=bits, per=per))
    assert error(weight, limit, bits) <= error(weight, weight.abs().amax(1), bits)
    if bits == 4:  # eight bits resolve even these rows
        assert (limit < 15).all()
        assert error(weight, limit, bits) < 0.75 * error(weight, weight.abs().amax(1), bits)


def test_rounding_by_hand() -> None:
    found = rounded(torch.tensor([[0.9, -3.0, 0.2]]), torch.tensor([1.0]), bits=2)
    assert found.tolist() == [[1.0, -1.0, 0.0]]


def test_a_percentile_counts_weights() -> None:
    weight = torch.arange(1.0, 101.0).reshape(1, 100)
    limit = limits(weight, Clipping(method="percentile", percentile=90))
    assert int((weight > limit).sum()) == 10


def test_one_limit_a_channel_or_a_layer() -> None:
    weight = torch.stack([torch.linspace(-1, 1, 50), torch.linspace(-4, 4, 50)]).reshape(2, 2, 5, 5)
    by_channel = limits(weight, Clipping(method="percentile", percentile=80))
    assert by_channel.shape == (2, 1, 1, 1)
    assert by_channel[1] > 3 * by_channel[0]
    assert limits(weight, Clipping(method="percentile", percentile=80, per="tensor")).shape == (1, 1, 1, 1)


def test_no_weight_is_beyond_a_given_threshold() -> None:
    module, signature, _ = toys.toy("cnn")
    state = run_step(
        Clipping(method="threshold", threshold=0.05),
        toys.state(module, signature),
        toys.context(signature.input_shape),
    )
    after, before = weights_of(state.module), weights_of(module)
    cut = sum(int((weight.abs() > 0.05).sum()) for weight in before.values())
    assert state.decisions[-1]["clipped"] == cut > 0
    for name, weight in after.items():
        assert torch.equal(weight, before[name].clamp(-0.05, 0.05)), name


def test_refused_where_nothing_would_be_cut() -> None:
    module, signature, _ = toys.toy("mlp")
    with pytest.raises(CompressionError, match="no weight lies beyond its limit: 1000"):
        run_step(
            Clipping(method="threshold", threshold=1000),
            toys.state(module, signature),
            toys.context(signature.input_shape),
        )


def test_refused_without_weights() -> None:
    _, signature, _ = toys.toy("mlp")
    bare = nn.Sequential(nn.ReLU())
    with pytest.raises(CompressionError, match="no convolution or linear"):
        run_step(Clipping(), toys.state(bare, signature), toys.context(signature.input_shape))


@pytest.mark.parametrize("values", [{"method": "threshold"}, {"threshold": 0.1}])
def test_a_threshold_goes_with_its_method(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="goes with"):
        Clipping.model_validate(values)
