"""What later stages do to a model: export with any batch size, channel pruning, replay of a pruning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from orchestrator.models.base import fixed_width_layers
from orchestrator.models.build import build
from orchestrator.models.served import Served
from tests.models.toys import DIGITS, FITTING, SMALL, rows, signature

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp


def exported(model: nn.Module, example: Tensor) -> nn.Module:
    return torch.export.export(model, (example,), dynamic_shapes=({0: Dim.AUTO},)).module()


def pruner(model: Served, example: Tensor) -> tp.pruner.BasePruner:
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about the position embedding, which it prunes rightly
        return tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[last, *fixed_width_layers(model)],
        )


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_the_exported_graph_answers_alike_at_any_batch_size(name: str, shape: tuple[int, ...]) -> None:
    model = build(SMALL[name], signature(shape), seed=0).eval()
    graph = exported(model, rows(shape, 4))
    for count in (1, 3, 9):
        batch = rows(shape, count, seed=count)
        torch.testing.assert_close(graph(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_half_of_the_channels_can_be_pruned_and_the_rest_exported(name: str, shape: tuple[int, ...]) -> None:
    model = build(SMALL[name], signature(shape), seed=0).eval()
    before = sum(parameter.numel() for parameter in model.parameters())
    pruner(model, rows(shape, 2)).step()
    after = sum(parameter.numel() for parameter in model.parameters())
    assert after < 0.65 * before
    batch = rows(shape, 3)
    assert model(batch).shape == (3, 10)
    torch.testing.assert_close(exported(model, rows(shape, 4))(batch), model(batch), rtol=1e-4, atol=1e-5)
    model.train()(batch).sum().backward()


@pytest.mark.parametrize("name", SMALL)
def test_a_pruning_is_replayed_from_its_history_to_equal_bits(name: str) -> None:
    example = rows(DIGITS, 2)
    model = build(SMALL[name], signature(DIGITS), seed=0).eval()
    pruning = pruner(model, example)
    pruning.step()
    fresh = build(SMALL[name], signature(DIGITS), seed=1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(fresh, example)
    graph.load_pruning_history(pruning.pruning_history())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(example), model(example))


def test_pruning_a_vit_keeps_heads_and_cuts_positions_with_their_channels() -> None:
    model = build(SMALL["vit"], signature(DIGITS), seed=0).eval()
    patches = model.get_parameter("body.patches.weight").detach().clone()
    positions = model.get_parameter("body.positions").detach().clone()
    pruner(model, rows(DIGITS, 2)).step()
    left = model.get_parameter("body.patches.weight")
    kept = [next(i for i, row in enumerate(patches) if torch.equal(row, filter)) for filter in left]
    assert len(kept) == 12
    assert torch.equal(model.get_parameter("body.positions"), positions[..., kept])
    shapes = {
        name: list(model.get_parameter(f"body.blocks.0.attention.{name}.weight").shape)
        for name in ("query", "key", "value", "out")
    }
    assert shapes == {"query": [24, 12], "key": [24, 12], "value": [24, 12], "out": [12, 24]}
