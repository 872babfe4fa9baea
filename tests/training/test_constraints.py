"""Zeros, penalties and limits inside the training loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.compression.plan import run_step
from orchestrator.compression.step import masks_of
from orchestrator.config.clipping import Clipping
from orchestrator.config.constraints import Penalty, Sparsify
from orchestrator.config.measure import Metric
from orchestrator.config.steps import MagnitudePruning, Recovery
from orchestrator.config.training import Training
from orchestrator.errors import ConfigError
from orchestrator.models.base import weights_of
from orchestrator.training.constraints import Constraints, share_of_zeros
from orchestrator.training.loop import train
from orchestrator.training.state import TrainState
from tests.compression import toys
from tests.training.toy import FEATURES, IMAGES, QUICK, digest, module_of, part, run


def settings(**changes: Any) -> Training:
    return QUICK.model_copy(update={"batch_size": 8, **changes})


def zeros_of(module: nn.Module) -> float:
    weights = list(weights_of(module).values())
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_loop_ends_with_the_asked_share_of_zeros_and_still_learns(scope: str) -> None:
    module = module_of(IMAGES)
    chosen = Sparsify(amount=0.6, scope=scope, every=2)
    reports, _ = run(module, IMAGES, settings(epochs=8, sparsify=chosen))
    assert zeros_of(module) == pytest.approx(0.6, abs=0.005)
    assert reports[-1].metric >= 0.9
    if scope == "layer":
        for weight in weights_of(module).values():
            assert float((weight == 0).float().mean()) == pytest.approx(0.6, abs=0.02)


def test_the_share_follows_the_cubic_schedule() -> None:
    chosen = Sparsify(amount=0.8, start=0.2, end=0.6)
    assert share_of_zeros(chosen, 0.0) == share_of_zeros(chosen, 0.2) == 0
    assert share_of_zeros(chosen, 0.4) == pytest.approx(0.8 * (1 - 0.5**3))
    assert share_of_zeros(chosen, 0.6) == share_of_zeros(chosen, 1.0) == pytest.approx(0.8)


def of_each_four(weight: Tensor) -> list[int]:
    return sorted(set((weight.detach() == 0).movedim(1, -1).reshape(-1, 4).sum(1).tolist()))


def test_zeros_among_each_four_rise_to_two() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3))
    first, second = weights_of(module).values()
    chosen = Constraints(module, settings(sparsify=Sparsify(n_of_m=(2, 4), start=0, end=1, every=1)), {})
    found = []
    for step in range(9):
        chosen.begin(step, step, 9)
        found += of_each_four(second)
    assert found == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert (first != 0).all()  # three inputs are no multiple of four


def test_few_steps_still_reach_the_share() -> None:
    """One epoch of fewer steps than lie between two choices."""
    module = module_of(FEATURES)
    run(module, FEATURES, settings(epochs=1, sparsify=Sparsify(amount=0.5, every=1000)))
    assert zeros_of(module) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsify": Sparsify(amount=0.5, every=3)},
        {"sparsify": Sparsify(n_of_m=(1, 2), every=3)},
        {"penalty": Penalty(kind="group_lasso", strength=1e-3)},
        {"clip_weights": Clipping(method="percentile", percentile=95)},
    ],
    ids=["sparsify", "n_of_m", "penalty", "clip"],
)
def test_a_stopped_run_goes_on_bit_equal(changes: dict[str, Any]) -> None:
    chosen = settings(**changes)
    _, whole = run(module_of(IMAGES), IMAGES, chosen)
    first, state = module_of(IMAGES), TrainState()
    rows, validation = part(IMAGES), part(IMAGES, 50, seed=1)
    options: dict[str, Any] = {"signature": IMAGES, "metric": Metric(), "seed": 3, "threads": 1}
    for report in train(first, rows, validation, chosen, state=state, **options):
        if report.epoch == 1:
            break
    again = module_of(IMAGES, seed=9)
    list(train(again, rows, validation, chosen, state=state, **options))
    assert digest(state.weights) == digest(whole.weights)


def norms(module: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten(1).norm(dim=1) for weight in weights_of(module).values()])


def test_each_penalty_shrinks_what_it_names() -> None:
    plain, lasso, one = module_of(IMAGES), module_of(IMAGES), module_of(IMAGES)
    run(plain, IMAGES, settings())
    run(lasso, IMAGES, settings(penalty=Penalty(kind="group_lasso", strength=0.003)))
    run(one, IMAGES, settings(penalty=Penalty(kind="l1", strength=0.01)))
    assert norms(lasso).sum() < 0.9 * norms(plain).sum()
    sizes = [sum(float(w.detach().abs().sum()) for w in weights_of(m).values()) for m in (plain, one)]
    assert sizes[1] < 0.85 * sizes[0]


def test_bn_scales_shrink() -> None:
    def scales(module: nn.Module) -> float:
        return sum(
            float(p.weight.detach().abs().sum()) for p in module.modules() if isinstance(p, nn.BatchNorm2d)
        )

    found = []
    for penalty in (None, Penalty(kind="bn_scale", strength=0.1)):
        module, signature, _ = toys.toy("resnet")
        training = Training(epochs=3, batch_size=8, lr=0.05, penalty=penalty)
        step = Recovery(training=training)
        state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
        found.append(scales(state.module))
    assert found[1] < 0.9 * found[0]


def test_penalties_are_the_sums_that_they_say() -> None:
    convolution, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    module = nn.Sequential(convolution, norm)
    weight, scale = convolution.weight.detach(), norm.weight.detach()
    for kind, expected in (
        ("l1", weight.abs().sum()),
        ("group_lasso", sum(row.norm() * 18**0.5 for row in weight.flatten(1))),
        ("bn_scale", scale.abs().sum()),
    ):
        chosen = settings(penalty=Penalty(kind=kind, strength=0.5))
        found = Constraints(module, chosen, {}).penalty()
        assert found is not None
        assert float(found.detach()) == pytest.approx(0.5 * float(expected), rel=1e-5)


def test_no_weight_passes_a_given_limit() -> None:
    module = module_of(IMAGES)
    run(module, IMAGES, settings(clip_weights=Clipping(method="threshold", threshold=0.1)))
    assert all(float(weight.detach().abs().max()) <= 0.1 + 1e-6 for weight in weights_of(module).values())


def test_zeros_of_a_recovery_stay_zero_in_the_next_one() -> None:
    module, signature, _ = toys.toy("cnn")
    context = toys.context(signature.input_shape)
    thin = Training(epochs=2, batch_size=8, lr=0.02, sparsify=Sparsify(amount=0.5, every=2))
    once = run_step(Recovery(training=thin), toys.state(module, signature), context)
    masks = masks_of(once.module, once.plan)
    assert masks is not None
    twice = run_step(Recovery(training=Training(epochs=1, batch_size=8, lr=0.02)), once, context)
    for name, mask in masks.items():
        assert not twice.module.get_parameter(name)[~mask].any()


def test_what_cannot_be_constrained_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch norm"):
        Constraints(nn.Linear(2, 2), settings(penalty=Penalty(kind="bn_scale", strength=1.0)), {})
    with pytest.raises(ConfigError, match="convolution or linear"):
        Constraints(nn.BatchNorm1d(2), settings(sparsify=Sparsify(amount=0.5)), {})
    with pytest.raises(ConfigError, match="multiple of 4: 2 of 4"):
        Constraints(nn.Linear(6, 2), settings(sparsify=Sparsify(n_of_m=(2, 4))), {})
    for wrong in ({}, {"amount": 0.5, "n_of_m": [2, 4]}, {"n_of_m": [4, 4]}):
        with pytest.raises(ValidationError, match="n_of_m"):
            Sparsify.model_validate(wrong)
    assert "n_of_m" not in Sparsify(amount=0.5).plain()
    with pytest.raises(ValidationError, match="before 'end'"):
        Sparsify(amount=0.5, start=0.8, end=0.5)


def test_a_weight_that_layers_share_is_pruned_once_and_stays_so() -> None:
    module, signature, _ = toys.imported("tied", (12,))
    pruned = run_step(MagnitudePruning(amount=0.5), toys.state(module, signature), toys.context((12,)))
    after = run_step(Recovery(training=settings(epochs=1)), pruned, toys.context((12,)))
    assert pruned.decisions[0]["weights"] == 12 * 12 + 12 * toys.CLASSES
    assert zeros_of(after.module) == pytest.approx(0.5, abs=0.01)
    with_embedding = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4))
    with_embedding[1].weight = with_embedding[0].weight
    assert list(weights_of(with_embedding)) == ["0.weight"]
