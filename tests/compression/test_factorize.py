"""Low-rank factorization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.compression.factorize import kept_rank
from orchestrator.compression.plan import State, run_step
from orchestrator.config.steps import Factorization
from orchestrator.errors import CompressionError
from orchestrator.models.build import example_rows
from orchestrator.runtime.lowrank import thin
from tests.compression import toys


def factorized(model: str, step: Factorization) -> tuple[nn.Module, State]:
    module, signature, _ = toys.toy(model)
    return module, run_step(step, toys.state(module, signature), toys.context(signature.input_shape))


def low_rank(module: nn.Module, rank: int) -> None:
    """Make every weight's matrix one of low rank."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                u, s, v = torch.linalg.svd(part.weight.flatten(1), full_matrices=False)
                part.weight.copy_(((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(part.weight.shape))


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_a_model_of_low_rank_keeps_its_answers(model: str) -> None:
    module, signature, _ = toys.toy(model)
    low_rank(module, 2)
    state = run_step(
        Factorization(energy=0.999999), toys.state(module, signature), toys.context(signature.input_shape)
    )
    assert set(state.decisions[-1]["ranks"].values()) <= {1, 2}
    rows = example_rows(signature, 8)
    with torch.no_grad():
        torch.testing.assert_close(state.module(rows), module(rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "vit"])
def test_parameters_fall_and_what_stays_whole_says_why(model: str) -> None:
    module, state = factorized(model, Factorization(rank=0.3))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, state.module))
    assert after < before
    layers = {name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    decision = state.decisions[-1]
    assert decision["ranks"].keys() | decision["left"].keys() == layers
    assert all(decision["left"].values())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 7),
        nn.Linear(12, 7, bias=False),
        nn.Conv2d(6, 9, 3, stride=2, padding=1),
        nn.Conv2d(6, 9, 3, padding="same", dilation=2, bias=False),
        nn.Conv2d(6, 9, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_the_error_is_that_of_the_singular_values_left_out(layer: nn.Linear | nn.Conv2d) -> None:
    """Eckart and Young; and at full rank the product is the layer."""
    torch.manual_seed(0)
    matrix = layer.weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rows = torch.randn(4, 12) if isinstance(layer, nn.Linear) else torch.randn(4, 6, 8, 8)
    for rank in (2, len(s)):
        product: Any = thin(layer, rank)
        with torch.no_grad():
            product[0].weight.copy_(v[:rank].reshape(product[0].weight.shape))
            product[1].weight.copy_((u[:, :rank] * s[:rank]).reshape(product[1].weight.shape))
            if layer.bias is not None:
                product[1].bias.copy_(layer.bias)
            lost = (matrix - product[1].weight.flatten(1) @ product[0].weight.flatten(1)).square().sum()
            torch.testing.assert_close(lost, s[rank:].square().sum(), rtol=1e-4, atol=1e-5)
            if rank == len(s):
                torch.testing.assert_close(product(rows), layer(rows), rtol=1e-4, atol=1e-5)


def test_ranks_by_hand() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1, 0 of 14
    assert kept_rank(values, Factorization(energy=0.6)) == 1
    assert kept_rank(values, Factorization(energy=0.9)) == 2
    assert kept_rank(values, Factorization(energy=0.99)) == 3
    assert kept_rank(values, Factorization(rank=0.5)) == 2
    assert kept_rank(values, Factorization(rank=0.01)) == 1


def test_grouped_and_shared_layers_stay_whole() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(12, 12)
            self.two = nn.Linear(12, 12)
            self.two.weight = self.one.weight
            self.free = nn.Linear(12, 64)
            self.grouped = nn.Conv1d(64, 64, 1, groups=4)
            self.depth = nn.Conv2d(64, 64, 1, groups=64)
            self.head = nn.Linear(64, toys.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.free(self.two(self.one(x).relu()).relu())
            x = self.depth(self.grouped(x[:, :, None])[..., None]).flatten(1)
            y: torch.Tensor = self.head(x)
            return y

    signature = toys.signature((12,))
    state = run_step(Factorization(rank=0.3), toys.state(Odd().eval(), signature), toys.context((12,)))
    decision = state.decisions[-1]
    assert set(decision["ranks"]) == {"free", "head"}
    assert "shared" in decision["left"]["one"]
    assert "shared" in decision["left"]["two"]
    assert "groups" in decision["left"]["depth"]
    assert decision["left"]["grouped"] == "there is no product form of Conv1d"


def test_a_layer_under_two_names_stays_whole() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(12, 12)
            self.wide = nn.Linear(12, 64)
            self.head = nn.Linear(64, toys.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.wide(self.second(self.first(x).relu()).relu()).relu())
            return y

    state = run_step(
        Factorization(rank=0.3), toys.state(Deep().eval(), toys.signature((12,))), toys.context((12,))
    )
    assert set(state.decisions[-1]["ranks"]) == {"wide", "head"}
    assert "shared" in state.decisions[-1]["left"]["first"]


def test_a_layer_whose_weight_is_read_elsewhere_stays_whole() -> None:
    module, signature, _ = toys.imported("hugging_face_vit", (3, 16, 16))
    state = run_step(Factorization(rank=0.3), toys.state(module, signature), toys.context((3, 16, 16)))
    (name,) = (name for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    assert "reads more" in state.decisions[-1]["left"][name]
    assert len(state.decisions[-1]["ranks"]) > 8


def test_refused_where_nothing_becomes_smaller() -> None:
    with pytest.raises(CompressionError, match="no layer would become smaller"):
        factorized("mlp", Factorization(rank=0.95))
