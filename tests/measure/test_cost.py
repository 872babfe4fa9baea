"""Multiply-accumulates and parameters against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ResNet, ResNetKwargs, Vit, VitKwargs
from orchestrator.measure.cost import Cost, count
from orchestrator.models.build import build
from tests.models.toys import COLOUR, DIGITS, ROWS, SMALL, rows, signature


def test_linear_layers() -> None:
    settings = Mlp(kwargs=MlpKwargs(widths=(16,)))
    assert count(build(settings, signature(ROWS)), signature(ROWS)) == Cost(
        macs=6 * 16 + 16 * 10, params=6 * 16 + 16 + 16 * 10 + 10
    )


def test_convolutions() -> None:
    settings = Cnn(kwargs=CnnKwargs(channels=(4, 6), hidden=8))
    macs = 64 * 9 * 1 * 4 + 16 * 9 * 4 * 6 + 2 * 2 * 6 * 8 + 8 * 10
    params = 9 * 4 + 8 + 9 * 4 * 6 + 12 + (24 * 8 + 8) + (8 * 10 + 10)
    assert count(build(settings, signature(DIGITS)), signature(DIGITS)) == Cost(macs, params)


def test_attention_is_counted_as_its_two_products() -> None:
    settings = Vit(kwargs=VitKwargs(patch=4, dim=24, depth=1, heads=3, mlp_ratio=2.0))
    tokens, dim = 4, 24
    linear = tokens * (16 * dim + 4 * dim * dim + 2 * dim * 2 * dim) + dim * 10
    attention = 2 * tokens * tokens * dim
    assert count(build(settings, signature(DIGITS)), signature(DIGITS)).macs == linear + attention


def test_resnet_20_has_the_operations_that_its_paper_gives() -> None:
    """He et al. 2015, section 4.2: 0.27 M parameters; 41 M multiply-accumulates with projections."""
    cost = count(build(ResNet(kwargs=ResNetKwargs(depth=20)), signature(COLOUR)), signature(COLOUR))
    assert cost.macs == pytest.approx(41.2e6, rel=0.01)
    assert cost.params == pytest.approx(0.27e6, rel=0.02)


def test_a_stem_stride_of_two_needs_a_quarter() -> None:
    kwargs = (ResNetKwargs(depth=8, stem_stride=1), ResNetKwargs(depth=8, stem_stride=2))
    models = (build(ResNet(kwargs=each), signature(COLOUR)) for each in kwargs)
    whole, halved = (count(model, signature(COLOUR)) for model in models)
    assert halved.macs == pytest.approx(whole.macs / 4, rel=0.01)
    assert halved.params == whole.params


def test_the_module_is_left_as_it_was() -> None:
    model = build(SMALL["resnet"], signature(DIGITS), seed=0)
    model.get_submodule("body.1").eval()
    modes = [part.training for part in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, signature(DIGITS))
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_an_exported_graph_costs_the_same() -> None:
    for name in ("resnet", "vit"):
        model = build(SMALL[name], signature(DIGITS), seed=0).eval()
        graph = torch.export.export(model, (rows(DIGITS, 4),), dynamic_shapes=({0: Dim.AUTO},)).module()
        assert count(graph, signature(DIGITS)) == count(model, signature(DIGITS))


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_tied_weights_are_one_parameter_and_two_products() -> None:
    assert count(Tied(), signature(ROWS)) == Cost(macs=72, params=36)
