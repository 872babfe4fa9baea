"""Pruning of single weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from orchestrator.compression.magnitude import alive
from orchestrator.compression.plan import State, run_step
from orchestrator.compression.step import masks_of
from orchestrator.config.steps import MagnitudePruning
from orchestrator.errors import CompressionError
from tests.compression import toys


def magnitude(name: str, **settings: Any) -> State:
    module, signature, _ = toys.toy(name)
    step = MagnitudePruning(**settings)
    return run_step(step, toys.state(module, signature), toys.context(signature.input_shape))


def alive_in(state: State) -> dict[str, torch.Tensor]:
    masks = masks_of(state.module, state.plan)
    assert masks is not None
    return masks


def test_magnitude_by_amount_takes_the_smallest_of_all_layers() -> None:
    state = magnitude("cnn", amount=0.3)
    before, _, _ = toys.toy("cnn")
    masks = alive_in(state)
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert zeros == round(0.3 * sum(mask.numel() for mask in masks.values()))
    assert state.decisions[0]["zeros"] == zeros
    old, new = before.state_dict(), state.module.state_dict()
    kept = min(float(old[name][mask].abs().min()) for name, mask in masks.items())
    gone = max(float(old[name][~mask].abs().max()) for name, mask in masks.items() if not mask.all())
    assert gone <= kept
    for name, mask in masks.items():
        assert torch.equal(new[name], old[name] * mask)


def test_magnitude_by_threshold() -> None:
    state = magnitude("mlp", threshold=0.05)
    before, _, _ = toys.toy("mlp")
    for name, mask in alive_in(state).items():
        assert torch.equal(mask, before.state_dict()[name].abs() >= 0.05)


@pytest.mark.parametrize(
    ("threshold", "sentence"), [(1e-12, "no weight would become zero"), (100.0, "every weight of a layer")]
)
def test_thresholds_that_do_nothing_or_all_are_refused(threshold: float, sentence: str) -> None:
    with pytest.raises(CompressionError, match=sentence):
        magnitude("mlp", threshold=threshold)


def test_the_same_share_of_every_layer() -> None:
    state = magnitude("cnn", amount=0.25, scope="layer")
    masks = alive_in(state)
    for name, mask in masks.items():
        assert state.decisions[0]["layers"][name] == round(0.25 * mask.numel())


def test_two_of_four_along_the_input() -> None:
    state = magnitude("cnn", n_of_m=(2, 4))
    before, _, _ = toys.toy("cnn")
    masks = alive_in(state)
    layers = state.decisions[0]["layers"]
    for name, mask in masks.items():
        if mask.shape[1] % 4:
            assert layers[name] == 0
            continue
        assert layers[name] == mask.numel() // 2
        groups = mask.movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
        sizes = before.state_dict()[name].abs().movedim(1, -1).reshape(-1, 4)
        assert (sizes.masked_fill(~groups, torch.inf).amin(1) >= sizes.masked_fill(groups, 0).amax(1)).all()


def test_n_of_m_by_hand() -> None:
    sizes = {"w": torch.tensor([[4.0, 1.0, 3.0, 2.0, 1.0, 1.0, 5.0, 1.0]])}
    found = alive(sizes, MagnitudePruning(n_of_m=(1, 4)))["w"]
    assert found.tolist() == [[True, False, False, False, False, False, True, False]]


def test_n_of_m_needs_a_fitting_input() -> None:
    with pytest.raises(CompressionError, match="multiple of 7"):
        magnitude("mlp", n_of_m=(3, 7))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"amount": 0.5, "threshold": 0.1},
        {"amount": 0.5, "n_of_m": [2, 4]},
        {"threshold": 0.1, "scope": "layer"},
        {"n_of_m": [4, 4]},
        {"n_of_m": [0, 4]},
    ],
)
def test_one_rule_is_given(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MagnitudePruning.model_validate(values)
