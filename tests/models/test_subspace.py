"""Members that look at some of the features: which, and that the others do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.compression.plan import apply_plan
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.steps import ChannelPruning, Plan, StaticInt8
from orchestrator.errors import ModelError
from orchestrator.models.build import build
from orchestrator.models.subspace import FeatureSubset
from orchestrator.runtime.execute import load
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from tests.compression import toys

SIGNATURE = toys.signature((12,))
HALF = Mlp(kwargs=MlpKwargs(widths=(32, 16), features=0.5))


def chosen(module: Any) -> torch.Tensor:
    found: torch.Tensor = next(part for part in module.modules() if isinstance(part, FeatureSubset)).chosen
    return found


def test_the_seed_draws_the_share() -> None:
    drawn = [chosen(build(HALF, SIGNATURE, seed=seed)) for seed in (0, 0, 1, 2)]
    assert [int(one.sum()) for one in drawn] == [6, 6, 6, 6]
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(one.tolist()) for one in drawn}) == 3
    least = Mlp(kwargs=MlpKwargs(features=0.01))
    assert chosen(build(least, SIGNATURE, seed=0)).sum() == 1


@pytest.mark.parametrize("plan", [(), (ChannelPruning(amount=0.5), StaticInt8())], ids=["plain", "int8"])
def test_whole_rows_are_served_and_other_features_may_hold_anything(tmp_path: Path, plan: Plan) -> None:
    store, module = Store(tmp_path), build(HALF, SIGNATURE, seed=3)
    digest = toys.put(store, module, SIGNATURE, HALF)
    if plan:
        digest = apply_plan(store, digest, plan, toys.context(SIGNATURE.input_shape))
    executable = load(store, digest, "lowered" if plan else "eager")
    used = chosen(module)
    rows = torch.randn(8, 12, generator=torch.manual_seed(0))
    broken, other = rows.clone(), rows.clone()
    broken[:, ~used] = float("inf") if plan else float("nan")
    other[:, used] += 100
    answers = executable(rows.numpy())
    assert (executable(broken.numpy()) == answers).all()
    assert (executable(other.numpy()) != answers).any()
    if not plan:
        assert torch.equal(chosen(rebuild(store, digest).module), used)


def test_images_are_refused() -> None:
    with pytest.raises(ModelError, match=r"needs feature rows; .*\[3, 16, 16\].*leave 'features' out"):
        build(HALF, toys.signature((3, 16, 16)), seed=0)
