"""Channel pruning, and the failures it must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.compression import targets
from orchestrator.compression.channels import Channels, select
from orchestrator.compression.gradients import set_gradients
from orchestrator.compression.plan import State, apply_plan, run_step
from orchestrator.config.steps import ChannelPruning, Criterion, StaticInt8
from orchestrator.config.training import Training
from orchestrator.errors import CompressionError
from orchestrator.measure.cost import count
from orchestrator.measure.latency import Latency, Samples, summarize
from orchestrator.models.build import example_rows
from orchestrator.runtime.execute import of_module
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys


def pruned(name: str, **settings: Any) -> State:
    module, signature, _ = toys.toy(name)
    step = ChannelPruning(**{"amount": 0.5} | settings)
    return run_step(step, toys.state(module, signature), toys.context(signature.input_shape))


def widths(module: nn.Module) -> list[int]:
    return [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("scope", ["layer", "global", "isomorphic"])
@pytest.mark.parametrize("criterion", get_args(Criterion))
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


def test_layers_may_have_shares_of_their_own() -> None:
    before = widths(toys.toy("resnet")[0])
    found = widths(pruned("resnet", shares={"body.0": 0.0}).module)
    # The stem and the block behind it share their channels.
    assert found[0] == before[0]
    assert sum(found) < sum(before)
    with pytest.raises(CompressionError, match=r"no layer that can lose channels matches: head"):
        pruned("resnet", shares={"head*": 0.25})
    for wrong in ({"scope": "global"}, {"rounds": 2}):
        with pytest.raises(ValidationError, match="scope layer and one round"):
            ChannelPruning.model_validate({"amount": 0.5, "shares": {"a": 0.25}, **wrong})


def test_amount_is_rounded_to_the_nearest_multiple() -> None:
    found = [Channels("a", torch.arange(32.0), 1), Channels("b", torch.arange(6.0), 1)]
    removed = select(found, ChannelPruning(amount=0.3, round_to=4), 0.3)
    # 22.4 of 32 are nearest to 24; 4.2 of 6 to 4. The smallest scores go.
    assert removed == {"a": list(range(8)), "b": [0, 1]}


def test_global_ranking_never_erases_a_layer() -> None:
    found = [Channels("weak", torch.linspace(0, 0.1, 40), 1), Channels("strong", torch.linspace(1, 2, 40), 1)]
    removed = select(found, ChannelPruning(amount=0.6, scope="global", round_to=1), 0.6)
    assert len(removed["weak"]) == 36
    assert 0 < len(removed["strong"]) < 40


def test_rounds_together_leave_a_tenth_of_each_layer() -> None:
    """All channels of the first layer but one are far smaller than those of the second."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, toys.CLASSES)
    ).eval()
    first, second, _ = (part for part in net if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.weight[0] *= 1000
        second.weight[:, 0] *= 1000
    signature = toys.signature((12,))
    for rounds in (1, 2, 3):
        step = ChannelPruning(amount=0.6, criterion="l1", scope="global", round_to=1, rounds=rounds)
        state = run_step(step, toys.state(net, signature), toys.context((12,)))
        assert state.module.get_submodule("0").out_features == 4


def test_a_layer_that_is_to_stay_is_not_rounded_either() -> None:
    found = [Channels("a", torch.arange(100.0), 1), Channels("b", torch.arange(100.0), 1)]
    removed = select(found, ChannelPruning(amount=0.5, shares={"a": 0.0}, round_to=16), 0.5)
    assert removed == {"a": [], "b": list(range(52))}


def test_ties_go_by_channel_number() -> None:
    removed = select([Channels("a", torch.ones(8), 1)], ChannelPruning(amount=0.5), 0.5)
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


class _ByItsWidth(nn.Module):
    """Finds what it needs by the width of its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 16), nn.Linear(16, toys.CLASSES)
        self.scale_of_16 = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        out: torch.Tensor = self.head(hidden * getattr(self, f"scale_of_{hidden.shape[1]}"))
        return out


def test_a_forward_that_breaks_in_any_way_is_one_sentence() -> None:
    state = toys.state(_ByItsWidth().eval(), toys.signature((12,)))
    with pytest.raises(CompressionError, match=r"no longer runs \(AttributeError: .*scale_of_8"):
        run_step(ChannelPruning(amount=0.5), state, toys.context((12,)))


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


def test_isomorphic_layers_compete_with_their_like_only() -> None:
    found = [
        Channels("a", torch.tensor([1.0, 2.0, 3.0, 4.0]), 1, "conv"),
        Channels("b", torch.tensor([5.0, 6.0, 7.0, 8.0]), 1, "conv"),
        Channels("c", torch.tensor([0.1, 0.2, 0.3, 0.4]), 1, "linear"),
    ]
    step = ChannelPruning(amount=0.5, scope="isomorphic", round_to=1)
    assert select(found, step, 0.5) == {"a": [0, 1, 2], "b": [], "c": [0, 1]}
    everywhere = select(found, ChannelPruning(amount=0.5, scope="global", round_to=1), 0.5)
    assert everywhere["c"] == [0, 1, 2]


@pytest.mark.parametrize(("target", "share"), [("macs", 0.5), ("macs", 0.2), ("params", 0.5)])
def test_a_share_of_the_operations_or_parameters_is_reached(target: str, share: float) -> None:
    module, signature, _ = toys.toy("resnet")
    step = ChannelPruning.model_validate({target: share, "round_to": 1})
    state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
    before, after = count(module, signature), count(state.module, signature)
    reached = getattr(after, target) / getattr(before, target)
    assert share - 0.15 < reached <= share
    assert state.decisions[0]["reached"] == {target: reached}
    assert 0 < state.decisions[0]["amount"] < 1


def test_latency_is_a_ratio_taken_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is slower with each measurement, where time goes by operations."""
    slowness = iter(2.0**turn for turn in range(100))

    def timed(calls: dict[str, Any], settings: Any, *, baseline: str) -> dict[str, Latency]:
        factor, found = next(slowness), {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            found[name] = Samples([factor * counter.get_total_flops()] * 5, [1.0])
        return {name: summarize(own, settings, "eager", found[baseline]) for name, own in found.items()}

    monkeypatch.setattr(targets, "compare", timed)
    module, signature, _ = toys.toy("resnet")
    step = ChannelPruning(latency=0.5, round_to=1)
    state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
    left = count(state.module, signature).macs / count(module, signature).macs
    assert state.decisions[0]["reached"]["latency"] == pytest.approx(left, abs=0.01)
    assert 0.35 < left <= 0.51


@pytest.mark.slow
def test_a_share_of_the_measured_latency_is_reached() -> None:
    module, signature, _ = toys.toy("resnet9")
    state = run_step(
        ChannelPruning(latency=0.8), toys.state(module, signature), toys.context(signature.input_shape)
    )
    assert state.decisions[0]["reached"]["latency"] <= 0.8 * 1.05
    assert count(state.module, signature).macs < count(module, signature).macs


def test_a_target_beyond_reach_is_refused_with_what_was_reached() -> None:
    with pytest.raises(CompressionError, match=r"the least that was reached is 0\.\d+: 0\.001\. raise macs"):
        pruned("resnet", amount=None, macs=0.001)


def test_rounds_reach_the_same_amount_with_fresh_scores() -> None:
    once = pruned("resnet", amount=0.5)
    steps = pruned("resnet", amount=0.5, rounds=3, round_to=1)
    # Each round rounds, so a layer may end a channel off.
    for got, wanted in zip(widths(steps.module), widths(once.module), strict=True):
        assert abs(got - wanted) <= 1
    assert len(steps.decisions[0]["history"]) > len(once.decisions[0]["history"])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rounds_reach_a_share_of_the_operations(scope: str) -> None:
    module, signature, _ = toys.toy("resnet")
    told: list[int] = []
    context = toys.context(signature.input_shape, on_epoch=lambda report: told.append(report.epoch))
    training = Training(epochs=1, batch_size=32, lr=0.05)
    step = ChannelPruning.model_validate(
        {"macs": 0.4, "rounds": 2, "round_to": 1, "scope": scope, "recovery": training}
    )
    state = run_step(step, toys.state(module, signature), context)
    reached = count(state.module, signature).macs / count(module, signature).macs
    assert 0.3 < reached <= 0.4
    assert state.decisions[0]["reached"] == {"macs": reached}
    assert told == [0]
    first = [layer for layer, _, _ in state.decisions[0]["history"]]
    assert len(first) > len(set(first))  # the second round cut layers again


def test_rounds_refuse_a_target_out_of_reach_before_they_train() -> None:
    training = Training(epochs=1, batch_size=32, lr=0.05)
    module, signature, _ = toys.toy("resnet")
    told: list[int] = []
    context = toys.context(signature.input_shape, on_epoch=lambda report: told.append(report.epoch))
    step = ChannelPruning.model_validate({"macs": 0.001, "rounds": 2, "recovery": training})
    with pytest.raises(CompressionError, match=r"the least that was reached is 0\.\d+: 0\.001\. raise macs"):
        run_step(step, toys.state(module, signature), context)
    assert not told
    with pytest.raises(ValidationError, match="not with 'latency'"):
        ChannelPruning(latency=0.5, rounds=2)


def test_rounds_recover_in_between_and_rebuild_bit_equal(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("resnet")
    parent = toys.put(store, module, signature, settings)
    training = Training(epochs=1, batch_size=32, lr=0.05)
    told: list[int] = []
    context = toys.context(signature.input_shape, on_epoch=lambda report: told.append(report.epoch))
    plan = (ChannelPruning(amount=0.5, rounds=3, recovery=training),)
    digest = apply_plan(store, parent, plan, context)
    assert told == [0, 1]  # one epoch after each round but the last
    direct = run_step(plan[0], toys.state(module, signature), context)
    again = rebuild(store, digest).module
    rows = example_rows(signature, 4)
    with torch.no_grad():
        assert torch.equal(again(rows), direct.module(rows))


def sensitive() -> nn.Sequential:
    """The head ignores every second hidden unit, whose weights are the largest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, toys.CLASSES)).eval()
    into, out = (part.weight for part in net if isinstance(part, nn.Linear))
    with torch.no_grad():
        into.abs_()  # with the toy's positive rows no unit is dead
        into[::2] *= 10
        out[:, ::2] = 1e-6 * torch.randn(toys.CLASSES, 8)
    return net


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_what_the_loss_does_not_feel_goes_first(criterion: Criterion) -> None:
    signature = toys.signature((12,))
    step = ChannelPruning(amount=0.5, criterion=criterion, rows=32)
    state = run_step(step, toys.state(sensitive(), signature), toys.context((12,)))
    assert state.decisions[0]["history"] == [["0", True, list(range(0, 16, 2))]]
    by_size = run_step(
        ChannelPruning(amount=0.5, criterion="l1"), toys.state(sensitive(), signature), toys.context((12,))
    )
    assert by_size.decisions[0]["history"] != state.decisions[0]["history"]


def test_a_filter_and_its_negative_are_far_apart() -> None:
    """Eight filters on the axes, the first two on one of them: those are the farthest from all others."""
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, toys.CLASSES)).eval()
    into, out = (part.weight for part in net if isinstance(part, nn.Linear))
    with torch.no_grad():
        into.copy_(torch.cat([-torch.eye(12)[:1], torch.eye(12)[:7]]))
        out.zero_()
    step = ChannelPruning(amount=0.25, criterion="fpgm", round_to=1)
    state = run_step(step, toys.state(net, toys.signature((12,))), toys.context((12,)))
    ((_, _, removed),) = state.decisions[0]["history"]
    assert {0, 1}.isdisjoint(removed)


def test_a_layer_of_zeros_goes_first() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        for name in ("2.weight", "4.weight"):
            net.get_parameter(name).zero_()
    step = ChannelPruning(amount=0.3, criterion="l2", scope="global", round_to=1)
    state = run_step(step, toys.state(net, toys.signature((12,))), toys.context((12,)))
    assert [layer for layer, _, _ in state.decisions[0]["history"]] == ["2"]


def test_the_hessian_is_the_mean_square_over_rows() -> None:
    signature, module = toys.signature((12,)), sensitive()
    part = toys.rows((12,))
    step = ChannelPruning(amount=0.5, criterion="hessian", rows=3)
    set_gradients(module, step, signature, toys.context((12,)))
    weight = next(module.parameters())
    assert weight.grad is not None
    found = weight.grad.clone()
    wanted = torch.zeros_like(found)
    for row, target in zip(torch.tensor(part.inputs[:3]), torch.tensor(part.targets[:3]), strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(row[None]), target[None]).backward()
        wanted += weight.grad.square() / 3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "sentence"), [(None, "needs train rows"), ("unlabelled", "needs labelled rows")]
)
def test_gradients_need_labelled_rows(rows: str | None, sentence: str) -> None:
    module, signature, _ = toys.toy("mlp")
    part = toys.rows((12,))
    train = None if rows is None else replace(part, targets=np.full(len(part.ids), -1))
    with pytest.raises(CompressionError, match=sentence):
        run_step(
            ChannelPruning(amount=0.5, criterion="taylor"),
            toys.state(module, signature),
            toys.context((12,), train=train),
        )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"amount": 0.5, "macs": 0.5},
        {"amount": 0.5, "recovery": {"epochs": 1}},
        {"latency": 0.5, "rounds": 2},
    ],
)
def test_one_target_is_given(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChannelPruning.model_validate(values)


@pytest.mark.parametrize("name", ["mirror", "airbench"])
def test_mirrored_and_reordered_networks_lose_half_of_their_channels(name: str) -> None:
    module, signature, _ = toys.toy(name)
    context = toys.context(signature.input_shape)
    state = run_step(ChannelPruning(amount=0.5), toys.state(module, signature), context)
    before, after = count(module, signature), count(state.module, signature)
    assert after.macs < 0.55 * before.macs
    int8 = run_step(StaticInt8(), state, context)
    inputs = toys.rows(signature.input_shape, 33).inputs
    wanted = of_module(state.module, signature, "eager")(inputs)
    got = of_module(int8.module, signature, "lowered")(inputs)
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)
