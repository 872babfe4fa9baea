"""Pruning of attention heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.compression.gradients import row_gradients
from orchestrator.compression.heads import _gates
from orchestrator.compression.plan import State, run_step
from orchestrator.config.model import Vit, VitKwargs
from orchestrator.config.steps import ChannelPruning, HeadPruning, Recovery, StaticInt8
from orchestrator.errors import CompressionError
from orchestrator.measure.cost import count
from orchestrator.runtime.heads import attentions, keep_heads
from tests.compression import toys

SHAPE = (3, 16, 16)
SETTINGS = Vit(kwargs=VitKwargs(patch=8, dim=16, depth=2, heads=4))


def pruned(**settings: Any) -> tuple[nn.Module, State]:
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    return module, run_step(HeadPruning(**settings), toys.state(module, signature), toys.context(SHAPE))


@pytest.mark.parametrize("criterion", ["taylor", "l1", "l2", "hessian", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_half_of_the_heads_go_and_operations_fall(criterion: str, scope: str) -> None:
    before, state = pruned(amount=0.5, criterion=criterion, scope=scope)
    found = attentions(state.module)
    assert sum(attention.heads for attention in found.values()) == 4
    assert all(attention.heads >= 1 for attention in found.values())
    signature = toys.signature(SHAPE)
    assert count(state.module, signature).macs < count(before, signature).macs
    assert count(state.module, signature).params < count(before, signature).params


def test_what_is_cut_is_the_head_and_nothing_else() -> None:
    """Without heads whose output columns are zero the answers stay."""
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    for attention in attentions(module).values():
        with torch.no_grad():
            attention.output.weight[:, attention.columns([1, 3])] = 0
    rows = torch.from_numpy(toys.rows(SHAPE, 8).inputs)
    with torch.no_grad():
        wanted = module(rows)
        for criterion in ("l2", "taylor", "hessian"):
            step = HeadPruning(amount=0.5, criterion=criterion)
            state = run_step(step, toys.state(module, signature), toys.context(SHAPE))
            if criterion != "l2":
                assert all(kept == [0, 2] for kept in state.decisions[0]["kept"].values())
                torch.testing.assert_close(state.module(rows), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("criterion", "stays"), [("l1", 1), ("l2", 0)])
def test_many_small_weights_against_a_large_one(criterion: str, stays: int) -> None:
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    for attention in attentions(module).values():
        with torch.no_grad():
            for layer in (*attention.inputs, attention.output):
                layer.weight.zero_()
            query = attention.inputs[0].weight
            query[0, 0] = 3.0  # of the first head
            query[attention.width, :16] = 0.5  # of the second
    step = HeadPruning.model_validate({"amount": 0.75, "criterion": criterion})
    state = run_step(step, toys.state(module, signature), toys.context(SHAPE))
    assert all(kept == [stays] for kept in state.decisions[0]["kept"].values())


def test_taylor_is_the_mean_size_of_a_gates_gradient() -> None:
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    context = toys.context(SHAPE)
    step = HeadPruning(amount=0.5, rows=16)
    name, attention = next(iter(attentions(module).items()))
    found = _gates({name: attention}, row_gradients(module, step, signature, context))[name]
    assert all(parameter.grad is None for parameter in module.parameters())
    gates = torch.ones(4, requires_grad=True)

    def gate(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0] * gates.repeat_interleave(attention.width),)

    handle = attention.output.register_forward_pre_hook(gate)
    assert context.train is not None
    wanted = torch.zeros(4, dtype=torch.float64)
    for row, label in zip(context.train.inputs[:16], context.train.targets[:16], strict=True):
        loss = nn.functional.cross_entropy(module(torch.from_numpy(row[None])), torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, gates)
        wanted += gradient.abs().double() / 16
    handle.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_frozen_heads_are_cut_where_gradients_are_off(criterion: str) -> None:
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    step = HeadPruning.model_validate({"amount": 0.5, "criterion": criterion})
    wanted = run_step(step, toys.state(module, signature), toys.context(SHAPE)).decisions[0]["kept"]
    with torch.no_grad():
        state = run_step(step, toys.state(module.requires_grad_(False), signature), toys.context(SHAPE))
    assert state.decisions[0]["kept"] == wanted
    assert not any(parameter.requires_grad for parameter in state.module.parameters())


def test_each_layer_keeps_one_head() -> None:
    _, state = pruned(amount=0.99)
    assert all(attention.heads == 1 for attention in attentions(state.module).values())


def test_heads_channels_recovery_and_int8_together() -> None:
    signature = toys.signature(SHAPE)
    module = toys.model(SETTINGS, signature)
    state = toys.state(module, signature)
    for step in (ChannelPruning(amount=0.5), HeadPruning(amount=0.5), Recovery(), StaticInt8()):
        state = run_step(step, state, toys.context(SHAPE))
    assert state.module(torch.zeros(3, *SHAPE, dtype=torch.uint8)).shape == (3, toys.CLASSES)


@pytest.mark.parametrize("kind", ["vit", "bert", "albert"])
def test_heads_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes)).eval()
        rows = {"pixel_values": torch.rand(2, 3, 16, 16)}
    elif kind == "albert":
        config = transformers.AlbertConfig(vocab_size=20, embedding_size=16, **sizes)
        model = transformers.AlbertModel(config).eval()
        rows = {"input_ids": torch.arange(10).reshape(2, 5)}
    else:
        model = transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)).eval()
        rows = {"input_ids": torch.arange(10).reshape(2, 5)}
    found = attentions(model)
    # Layers of ALBERT are one layer.
    assert len(found) == (1 if kind == "albert" else 2)
    with torch.no_grad():
        for attention in found.values():
            attention.output.weight[:, attention.columns([0])] = 0
        wanted = model(**rows).last_hidden_state
        keep_heads(model, {name: [1, 2, 3] for name in found})
        torch.testing.assert_close(model(**rows).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
    assert all(attention.heads == 3 for attention in attentions(model).values())


def test_models_without_attention_and_amounts_that_do_nothing_are_refused() -> None:
    module, signature, _ = toys.toy("cnn")
    with pytest.raises(CompressionError, match="no attention"):
        run_step(HeadPruning(amount=0.5), toys.state(module, signature), toys.context(signature.input_shape))
    with pytest.raises(CompressionError, match="no head would be removed"):
        pruned(amount=0.05)
