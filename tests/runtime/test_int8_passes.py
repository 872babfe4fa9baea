"""Operators that work in place become int8 kernels, where nothing else sees what they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from orchestrator.compression.audit import coverage
from orchestrator.compression.plan import apply_plan
from orchestrator.config.steps import DynamicInt8, StaticInt8
from orchestrator.runtime import int8
from orchestrator.runtime.execute import load
from orchestrator.runtime.int8_passes import functionalize
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys

SHAPE = (3, 8, 8)


def made(store: Store, name: str, step: StaticInt8 | DynamicInt8) -> tuple[str, str]:
    """The digest of an int8 toy, and its factory."""
    module, signature, settings = toys.imported(name, SHAPE)
    context = toys.context(SHAPE, allowed=(settings.factory,))
    parent = toys.put(store, module, signature, settings)
    return apply_plan(store, parent, (step,), context), settings.factory


def answers(store: Store, digest: str, factory: str) -> Tensor:
    executable = load(store, digest, "lowered", allowed=(factory,))
    return torch.as_tensor(executable(toys.rows(SHAPE).inputs))


@pytest.mark.parametrize("step", [StaticInt8(rows=16), DynamicInt8()])
def test_a_model_that_works_in_place_gets_the_kernels_of_its_twin(
    tmp_path: Path, step: StaticInt8 | DynamicInt8
) -> None:
    store, found = Store(tmp_path), []
    for name in ("in_place", "out_of_place"):
        digest, factory = made(store, name, step)
        rebuilt = rebuild(store, digest, allowed=(factory,))
        assert isinstance(rebuilt.module, fx.GraphModule)
        covered = coverage(rebuilt.module, rebuilt.manifest.signature)
        functional = rebuilt.manifest.decisions[-1].get("functional")
        found.append((covered["kernels"], functional, answers(store, digest, factory)))
    (kernels, replaced, ours), (expected, untouched, theirs) = found
    assert kernels == expected == (3 if step.kind == "int8_static" else 1)
    assert (replaced, untouched) == (True, None)
    assert torch.equal(ours, theirs)


def test_what_was_made_with_operators_in_place_is_rebuilt_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, step = Store(tmp_path), StaticInt8(rows=16)
    with monkeypatch.context() as before:
        before.setattr(int8, "functionalize", lambda graph: False)  # noqa: ARG005
        digest, factory = made(store, "in_place", step)
        expected = answers(store, digest, factory)
    assert "functional" not in store.manifest(digest).decisions[-1]
    rebuilt = rebuild(store, digest, allowed=(factory,)).module
    assert isinstance(rebuilt, fx.GraphModule)
    assert any("relu_" in str(node.target) for node in rebuilt.graph.nodes)
    assert torch.equal(answers(store, digest, factory), expected)


def _plain(y: Tensor) -> Tensor:
    return y.add_(1).relu_()


def _view(y: Tensor) -> Tensor:
    return y.view(-1, 2, 2).relu_().flatten(1)


def _view_read_before(y: Tensor) -> Tensor:
    total = y.view(-1, 2, 2).sum((1, 2), keepdim=True).flatten(1)
    return y.relu_() + total


def _view_read_later(y: Tensor) -> Tensor:
    view = y.view(-1, 2, 2)
    return y.relu_() + view.flatten(1)


def _base_read_later(y: Tensor) -> Tensor:
    return y.view(-1, 2, 2).relu_().flatten(1) + y


def _part_read_later(y: Tensor) -> Tensor:
    left, right = y.chunk(2, 1)
    left.relu_()
    return y.sum(1, keepdim=True) + left + right


def _same_tensor_read_later(y: Tensor) -> Tensor:
    # In eval mode dropout gives its very input, which its schema does not say.
    same = functional.dropout(y, training=False)
    return y.relu_() + same


def _compared(y: Tensor) -> Tensor:
    return y.gt_(0.5)


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        (_plain, True),
        (_view, True),
        (_view_read_before, True),
        (_view_read_later, False),
        (_base_read_later, False),
        (_part_read_later, False),
        (_same_tensor_read_later, False),
        (_compared, False),
    ],
)
def test_what_is_replaced_gives_the_same_bits(change: Callable[[Tensor], Tensor], replaced: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 4)
    graph = int8.export(_Changed(change), rows).module()
    assert isinstance(graph, fx.GraphModule)
    with torch.no_grad():
        expected = graph(rows)
        assert functionalize(graph.graph) == replaced
        graph.recompile()
        assert torch.equal(graph(rows), expected)


def test_inputs_are_left_as_they_are() -> None:
    class Input(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 4).relu_()

    graph = int8.export(Input(), torch.randn(8, 4)).module()
    assert isinstance(graph, fx.GraphModule)
    assert not functionalize(graph.graph)


class _Changed(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, 4), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))
