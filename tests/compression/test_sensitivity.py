"""Sensitivity of single layers to pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.compression import sensitivity as of_source
from orchestrator.compression.sensitivity import layer_sensitivity as sensitivity
from orchestrator.errors import CompressionError
from tests.compression import toys


class Uneven(nn.Module):
    """Half of the first layer's units are dead, all of the second's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.second = nn.Linear(16, toys.CLASSES)
        self.third = nn.Linear(toys.CLASSES, toys.CLASSES)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.bias.zero_()
            self.first.weight[: toys.CLASSES, 0] = 1.0 / 30
            self.first.bias[: toys.CLASSES] = 2.0 - torch.arange(float(toys.CLASSES))
            self.second.weight.zero_()
            self.second.weight[:, : toys.CLASSES] = torch.eye(toys.CLASSES)
            self.third.weight.copy_(torch.eye(toys.CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third(self.second(self.first(x).relu()).relu())
        return out


def test_dead_channels_cost_nothing_and_live_ones_do(tmp_path: Path) -> None:
    signature = toys.signature((12,))
    state = toys.state(Uneven().eval(), signature)
    found = sensitivity(state, toys.context((12,)), (0.5, 0.8))
    by_layer = {
        layer: [reading for reading in found.readings if reading.layer == layer]
        for layer in ("first", "second")
    }
    dead, live = by_layer["first"], by_layer["second"]
    assert [reading.amount for reading in dead] == [0.5, 0.8125]
    assert dead[0].metric == found.before  # eleven of sixteen units are dead
    assert all(0 < reading.macs < 1 for reading in found.readings)
    assert len(live) == 2
    page = found.write(tmp_path / "sensitivity.html").read_text(encoding="utf-8")
    assert "channels removed" in page
    assert "first" in page
    assert {reading["layer"] for reading in found.plain()["readings"]} == {"first", "second"}


def test_it_changes_nothing_and_repeats() -> None:
    module, signature, _ = toys.toy("resnet")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    context = toys.context(signature.input_shape)
    first = sensitivity(toys.state(module, signature), context, (0.5,))
    second = sensitivity(toys.state(module, signature), context, (0.5,))
    assert first == second
    assert len({reading.layer for reading in first.readings}) > 3
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_seed_decides_a_random_choice() -> None:
    module, signature, _ = toys.toy("mlp")
    first, second, other = (
        sensitivity(toys.state(module, signature), toys.context((12,), seed=seed), (0.5,), criterion="random")
        for seed in (3, 3, 4)
    )
    assert first == second != other


def test_rows_are_needed() -> None:
    module, signature, _ = toys.toy("mlp")
    with pytest.raises(CompressionError, match="needs validation rows"):
        sensitivity(toys.state(module, signature), toys.context((12,), validation=None))


def test_two_lines_from_python() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, toys.CLASSES))
    part = toys.rows((12,), count=120)
    found = of_source(net, (part.inputs, part.targets), (0.5,))
    assert [(reading.layer, reading.amount) for reading in found.readings] == [("body.0", 0.5)]
