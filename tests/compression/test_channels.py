"""Channel pruning, and the failures it must name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.compression.channels import Channels, select
from orchestrator.compression.plan import State, run_step
from orchestrator.config.steps import ChannelPruning, Criterion
from orchestrator.errors import CompressionError
from tests.compression import toys


def pruned(name: str, **settings: Any) -> State:
    module, signature, _ = toys.toy(name)
    step = ChannelPruning(**{"amount": 0.5} | settings)
    return run_step(step, toys.state(module, signature), toys.context(signature.input_shape))


def widths(module: nn.Module) -> list[int]:
    return [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm", "bn_scale", "random"])
def test_every_criterion_in_both_scopes(criterion: Criterion, scope: str) -> None:
    state = pruned("resnet", criterion=criterion, scope=scope)
    before, _, _ = toys.toy("resnet")
    assert sum(widths(state.module)) < sum(widths(before))
    assert all(width % 4 == 0 for width in widths(state.module))
    assert state.decisions[0]["removed"] > 0


def test_half_of_each_layer_goes_and_the_outputs_stay() -> None:
    state = pruned("resnet")
    assert widths(state.module)[:3] == [4, 4, 4]
    head = list(state.module.modules())[-2]
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (16, toys.CLASSES)


def test_amount_is_rounded_to_the_nearest_multiple() -> None:
    found = [Channels("a", torch.arange(32.0), 1), Channels("b", torch.arange(6.0), 1)]
    removed = select(found, ChannelPruning(amount=0.3, round_to=4))
    # 22.4 of 32 are nearest to 24; 4.2 of 6 to 4. The smallest scores go.
    assert removed == {"a": list(range(8)), "b": [0, 1]}


def test_global_ranking_never_erases_a_layer() -> None:
    found = [Channels("weak", torch.linspace(0, 0.1, 40), 1), Channels("strong", torch.linspace(1, 2, 40), 1)]
    removed = select(found, ChannelPruning(amount=0.6, scope="global", round_to=1))
    assert len(removed["weak"]) == 36
    assert 0 < len(removed["strong"]) < 40


def test_ties_go_by_channel_number() -> None:
    removed = select([Channels("a", torch.ones(8), 1)], ChannelPruning(amount=0.5))
    assert removed == {"a": [0, 1, 2, 3]}


def test_grouped_layers_lose_the_same_channel_of_each_block() -> None:
    module, signature, _ = toys.imported("grouped", (3, 8, 8))
    state = run_step(ChannelPruning(amount=0.5), toys.state(module, signature), toys.context((3, 8, 8)))
    convolutions = [part for part in state.module.modules() if isinstance(part, nn.Conv2d)]
    assert [(part.out_channels, part.groups) for part in convolutions] == [(8, 1), (8, 8), (12, 2)]


def test_heads_keep_their_width() -> None:
    """What an architecture names in `fixed_width_layers` stays."""
    state = pruned("vit")
    outputs = {
        name: part.out_features for name, part in state.module.named_modules() if isinstance(part, nn.Linear)
    }
    assert {width for name, width in outputs.items() if name.endswith(("query", "key", "value"))} == {16}
    assert outputs["body.blocks.0.mlp.0"] == 16
    assert outputs["body.head"] == toys.CLASSES


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    module, signature, _ = toys.toy("cnn")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    state = run_step(ChannelPruning(amount=0.5), toys.state(module, signature), toys.context((1, 8, 8)))
    assert widths(state.module) == [4, 8]
    assert not any(parameter.requires_grad for parameter in state.module.parameters())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(off: Callable[[], Any]) -> None:
    with off():
        state = pruned("cnn")
    assert widths(state.module) == [4, 8]


def test_equal_scores_are_refused() -> None:
    module, signature, _ = toys.toy("resnet")
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    step = ChannelPruning(amount=0.5, criterion="bn_scale", scope="global")
    with pytest.raises(CompressionError, match="ranks all channels alike"):
        run_step(step, toys.state(module, signature), toys.context((3, 16, 16)))


@pytest.mark.parametrize(
    ("factory", "shape", "settings", "sentence"),
    [
        ("tied", (12,), {}, "share a weight"),
        ("recurrent", (12,), {}, "recurrent"),
        ("one_linear", (12,), {}, "no layer's width"),
        ("convolutions_only", (3, 8, 8), {"criterion": "bn_scale"}, "no batch norm"),
        ("convolutions_only", (3, 8, 8), {"amount": 0.01}, "no channel would be removed"),
        ("convolutions_only", (3, 8, 8), {"round_to": 8}, "no channel would be removed"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    factory: str, shape: tuple[int, ...], settings: dict[str, Any], sentence: str
) -> None:
    module, signature, _ = toys.imported(factory, shape)
    step = ChannelPruning(**{"amount": 0.5} | settings)
    with pytest.raises(CompressionError, match=sentence):
        run_step(step, toys.state(module, signature), toys.context(shape))
