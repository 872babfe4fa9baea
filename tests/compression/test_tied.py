"""Layers with one weight: kept once in the file, and in every number type still one weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.api import compress
from orchestrator.compression.audit import audit
from orchestrator.compression.plan import apply_plan, run_step
from orchestrator.config.steps import (
    Bf16,
    DynamicInt8,
    Fp8,
    StaticInt8,
    Step,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.errors import CompressionError
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys

WIDTH = 64
TYPES = [
    (Bf16(), 2.0),
    (Fp8(), 1.0),
    (StaticInt8(rows=16), 1.0),
    (DynamicInt8(), 1.0),
    (WeightOnlyInt8(), 1.0),
    (WeightOnlyInt4(), 0.5),
]
"""Number types and bytes of a weight."""


@pytest.mark.parametrize(("step", "wide"), TYPES, ids=lambda one: getattr(one, "kind", None))
def test_a_weight_of_two_layers_is_kept_once(step: Step, wide: float, tmp_path: Path) -> None:
    store, shape = Store(tmp_path), (WIDTH,)
    module, signature, settings = toys.imported("tied", shape)
    context = toys.context(shape, allowed=(settings.factory,))
    parent = toys.put(store, module, signature, settings)
    assert 4 * WIDTH**2 < store.artifact_bytes(parent) < 4 * 1.7 * WIDTH**2
    digest = apply_plan(store, parent, (step,), context)
    weights = [one for one in store.tensors(digest).values() if one.numel() >= WIDTH**2 // 2]
    assert len({one.data_ptr() for one in weights}) == 1
    assert weights[0].nbytes == wide * WIDTH**2
    facts = audit(store, digest, allowed=context.allowed)
    assert facts["params"] == audit(store, parent, allowed=context.allowed)["params"]
    assert not any("left" in one for one in facts["decided"])
    made = run_step(step, toys.state(module, signature), context).module
    rows = torch.from_numpy(toys.rows(shape).inputs)
    with torch.no_grad():
        assert torch.equal(rebuild(store, digest, allowed=context.allowed).module(rows), made(rows))


class TiedEmbedding(nn.Module):
    """A linear whose weight is an embedding's, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.hidden = nn.Linear(32, 32)
        self.out = nn.Linear(32, 256, bias=False)
        self.out.weight = self.embedding.weight
        self.head = nn.Linear(256, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 12] -> [B, CLASSES]."""
        tokens = (x.abs() * 10).long().clamp(0, 255)
        out: Tensor = self.head(self.out(functional.relu(self.hidden(self.embedding(tokens).mean(1)))))
        return out


def test_an_fp8_linear_that_shares_a_float_weight_stays_float_and_says_so() -> None:
    part = toys.rows((12,))
    found = compress(TiedEmbedding(), [Fp8()], (part.inputs, part.targets)).audit(batches=())
    assert found.facts["bytes"] < found.baseline["bytes"] < 4 * found.facts["params"] + 2000
    assert found.facts["params"] == found.baseline["params"]
    assert [row["why"] for row in found.facts["fp8"]["fell_back"] if row["layer"].endswith("out")] == [
        "its weight is also that of body.embedding, which stays float"
    ]
    assert not any("left" in one for one in found.facts["decided"])


@pytest.mark.parametrize("step", [StaticInt8(rows=16), DynamicInt8()], ids=lambda one: one.kind)
def test_int8_rounds_a_linear_that_shares_a_float_weight(step: Step) -> None:
    part = toys.rows((12,))
    found = compress(TiedEmbedding(), [step], (part.inputs, part.targets)).audit(batches=())
    assert found.facts["int8"]["share"] == 1
    # The baseline has the weight once, so the gate weighs true bytes.
    assert found.baseline["bytes"] < 4 * found.facts["params"] + 2000


def test_weight_only_types_round_both_or_neither() -> None:
    part = toys.rows((12,))
    for step, times in ((WeightOnlyInt8(), 3.0), (WeightOnlyInt4(), 4.0)):
        found = compress(TiedEmbedding(), [step], (part.inputs, part.targets)).audit(batches=())
        assert found.facts["bytes"] * times < found.baseline["bytes"]

    class Own(nn.Linear):
        pass

    other = TiedEmbedding()
    other.out.__class__ = Own
    found = compress(other, [WeightOnlyInt8()], (part.inputs, part.targets)).audit(batches=())
    assert found.facts["decided"][0]["left"] == {
        "body.out": "there is no weight-only form of Own",
        "body.embedding": "its weight is also that of body.out, which stays float",
    }
    assert "body.embedding (its weight is also" in str(found)


def test_what_is_left_alone_whole_is_refused_with_the_reason() -> None:
    module = TiedEmbedding()
    module.hidden = nn.Linear(32, 32, bias=False)
    module.hidden.weight = nn.Parameter(torch.zeros(32, 32))
    part = toys.rows((12,))
    with pytest.raises(CompressionError, match=r"fp8 would round nothing: body.out: its weight is also"):
        compress(module, [Fp8(keep_float=("body.hidden",))], (part.inputs, part.targets))
