"""Rebuilding from manifest and weights, and refusing what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.compression.plan import apply_plan
from orchestrator.config.steps import ChannelPruning, Clipping, Plan, Recovery, StaticInt8
from orchestrator.config.training import Training
from orchestrator.errors import CorruptArtifactError, ModelError
from orchestrator.models.build import example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.execute import load
from orchestrator.runtime.graphs import QUANTIZED
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from tests.compression import toys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, plan: Plan) -> str:
    module, signature, settings = toys.toy("mlp")
    parent = toys.put(store, module, signature, settings)
    return apply_plan(store, parent, plan, toys.context(signature.input_shape))


def changed(store: Store, digest: str, decision: dict[str, Any]) -> str:
    """The same artifact with another decision for its last step."""
    manifest = store.manifest(digest)
    fields = {name: getattr(manifest, name) for name in Draft.model_fields}
    fields["decisions"] = (*manifest.decisions[:-1], manifest.decisions[-1] | decision)
    return store.put_artifact(Draft(**fields), store.tensors(digest))


def test_rebuilding_leaves_torch_random_state_alone(store: Store) -> None:
    digest = made(store, (ChannelPruning(amount=0.5),))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    module = rebuild(store, digest).module
    assert torch.equal(torch.rand(2), expected)
    assert not module.training


@pytest.mark.parametrize(
    "history",
    [
        [["body.99", True, [0]]],
        [["body.1", True, [0, 1, 2]]],
        [["body.1", True, [100_000]]],
        [["body.1", True]],
        "nonsense",
        None,
    ],
)
def test_a_pruning_that_does_not_fit_is_refused(store: Store, history: Any) -> None:
    digest = changed(store, made(store, (ChannelPruning(amount=0.5),)), {"history": history})
    with pytest.raises(CorruptArtifactError):
        rebuild(store, digest)


@pytest.mark.parametrize("drop", [0, 1])
def test_int8_arguments_that_do_not_fit_are_refused(store: Store, drop: int) -> None:
    digest = made(store, (StaticInt8(),))
    recorded = store.manifest(digest).decisions[-1]["arguments"]
    other = recorded[1:] if drop else [["other", *recorded[0][1:]], *recorded[1:]]
    with pytest.raises(CorruptArtifactError, match="int8 graph"):
        rebuild(store, changed(store, digest, {"arguments": other}))


def test_a_factory_outside_the_allow_list_never_runs(store: Store) -> None:
    module, signature, settings = toys.imported("one_linear", (12,))
    digest = toys.put(store, module, signature, settings)
    with pytest.raises(ModelError, match="not allowed"):
        rebuild(store, digest)
    assert rebuild(store, digest, allowed=(settings.factory,)).manifest.model == settings


def test_no_data_and_little_else_is_stored(store: Store) -> None:
    """An int8 artifact holds int8 weights, their scales and biases."""
    digest = made(store, (StaticInt8(),))
    kinds = {str(tensor.dtype) for tensor in store.tensors(digest).values() if tensor.ndim > 1}
    assert kinds == {"torch.int8"}


def test_int8_graphs_of_one_form_are_traced_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is first, each variant answers as in a process that never saw the other."""
    plans: list[Plan] = [
        (Recovery(training=Training(epochs=1)), StaticInt8()),
        (Clipping(method="percentile", percentile=90), StaticInt8(observer="minmax")),
    ]
    digests = [made(store, plan) for plan in plans]
    rows = example_rows(store.manifest(digests[0]).signature, 8).numpy()
    alone = []
    for digest in digests:
        QUANTIZED.clear()
        alone.append(load(store, digest, "lowered")(rows))
    assert not np.array_equal(alone[0], alone[1])
    QUANTIZED.clear()
    traced: list[torch.nn.Module] = []
    export = int8.export

    def counted(module: torch.nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
        traced.append(module)
        return export(module, example)

    monkeypatch.setattr(int8, "export", counted)
    for digest, expected in [*zip(digests, alone, strict=True)] * 2:
        assert np.array_equal(load(store, digest, "lowered")(rows), expected)
    assert len(traced) == 1
