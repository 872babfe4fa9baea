"""Plans: order, shared prefixes, recovery with the parent as teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.compression.plan import apply_plan, check_plan, plan_key
from orchestrator.config.constraints import Sparsify
from orchestrator.config.measure import Metric
from orchestrator.config.steps import (
    Bf16,
    ChannelPruning,
    Distill,
    MagnitudePruning,
    Qat,
    Recovery,
    StaticInt8,
    Step,
)
from orchestrator.config.training import Augment, DistillationLoss, Training
from orchestrator.errors import CompressionError, TrainingError
from orchestrator.models.base import weights_of
from orchestrator.runtime.execute import load
from orchestrator.runtime.rebuild import rebuild, tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport
from tests.compression import toys

SHAPE = (12,)
RECOVERY = Recovery(training=Training(epochs=2, batch_size=32, lr=0.02, loss=DistillationLoss()))
PATIENT = Training(epochs=4, patience=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store) -> str:
    module, signature, settings = toys.toy("mlp")
    return toys.put(store, module, signature, settings)


def divergence(outputs: Tensor, wanted: Tensor) -> Tensor:
    return functional.kl_div(outputs, wanted, reduction="batchmean", log_target=True)


@pytest.mark.parametrize(
    "plan",
    [
        (Bf16(), ChannelPruning(amount=0.5)),
        (RECOVERY, ChannelPruning(amount=0.5)),
        (MagnitudePruning(amount=0.5), ChannelPruning(amount=0.5)),
        (Bf16(), StaticInt8()),
    ],
)
def test_wrong_order_is_refused(plan: tuple[Step, ...]) -> None:
    with pytest.raises(CompressionError, match=f"'{plan[1].kind}' cannot follow '{plan[0].kind}'"):
        check_plan(plan)


def test_the_parents_own_steps_count(store: Store, parent: str) -> None:
    quantized = apply_plan(store, parent, (Bf16(),), toys.context(SHAPE))
    with pytest.raises(CompressionError, match="'prune_channels' cannot follow 'bf16'"):
        apply_plan(store, quantized, (ChannelPruning(amount=0.5),), toys.context(SHAPE))


def test_an_empty_plan_is_the_parent(store: Store, parent: str) -> None:
    assert apply_plan(store, parent, (), toys.context(SHAPE)) == parent


def test_plans_share_their_common_beginning(store: Store, parent: str) -> None:
    epochs: list[EpochReport] = []
    context = toys.context(SHAPE, on_epoch=epochs.append)
    start = (ChannelPruning(amount=0.5), RECOVERY)
    cast = apply_plan(store, parent, (*start, Bf16()), context)
    assert len(epochs) == 2
    assert len(store.digests()) == 4
    recovered = apply_plan(store, parent, start, context)
    assert apply_plan(store, parent, (*start, Bf16()), context) == cast
    assert len(epochs) == 2
    assert store.manifest(recovered).plan == start
    assert store.manifest(cast).parents == (parent,)
    assert store.manifest(cast).seed == 0


@pytest.mark.parametrize(
    ("error", "kept"),
    [(TrainingError("diverged"), False), (CompressionError("too bad"), False), (OSError("disk"), True)],
    ids=["training", "compression", "other"],
)
def test_a_step_that_would_fail_again_leaves_no_epochs(
    store: Store, parent: str, error: Exception, kept: bool
) -> None:
    told: list[EpochReport] = []

    def on_epoch(report: EpochReport) -> None:
        told.append(report)
        if len(told) == 2:  # by then there are saved ones
            raise error

    with pytest.raises(type(error)):
        apply_plan(store, parent, (RECOVERY,), toys.context(SHAPE, on_epoch=on_epoch))
    assert bool(store.blobs.list("checkpoints")) == kept


def test_a_lost_artifact_is_computed_again(store: Store, parent: str) -> None:
    """A second store finds the same digest: nothing of time, path or process is inside."""
    plan = (ChannelPruning(amount=0.5), RECOVERY)
    digest = apply_plan(store, parent, plan, toys.context(SHAPE))
    other = Store(store.root.parent / "other")
    module, signature, settings = toys.toy("mlp")
    assert toys.put(other, module, signature, settings) == parent
    assert apply_plan(other, parent, plan, toys.context(SHAPE)) == digest


def test_everything_that_decides_is_in_the_key() -> None:
    plan = (ChannelPruning(amount=0.5),)
    keys = {
        plan_key("a", plan, "d", 0, 1),
        plan_key("b", plan, "d", 0, 1),
        plan_key("a", (Bf16(),), "d", 0, 1),
        plan_key("a", plan, "e", 0, 1),
        plan_key("a", plan, "d", 1, 1),
        plan_key("a", plan, "d", 0, 2),
    }
    assert len(keys) == 6
    assert plan_key("a", plan, "d", 0, 1) in keys


@pytest.mark.parametrize(
    ("step", "decides"),
    [
        (StaticInt8(max_drop=0.01), True),
        (StaticInt8(), False),
        (ChannelPruning(amount=0.5, rounds=2, recovery=PATIENT), True),
        (ChannelPruning(amount=0.5, rounds=2, recovery=Training(epochs=2)), False),
        (Qat(training=PATIENT), True),
        (RECOVERY, False),
    ],
)
def test_the_metric_is_in_the_key_where_a_step_looks_at_it(step: Step, decides: bool) -> None:
    one, two = (plan_key("a", (step,), "d", 0, 1, Metric(name=name)) for name in ("accuracy", "macro_f1"))
    assert (one != two) is decides


def test_recovery_brings_the_parents_outputs_back(store: Store, parent: str) -> None:
    settings = Training(epochs=20, batch_size=16, lr=0.02, loss=DistillationLoss(weight=1.0, temperature=1.0))
    prune = ChannelPruning(amount=0.5)
    context = toys.context(SHAPE)
    pruned = apply_plan(store, parent, (prune,), context)
    recovered = apply_plan(store, parent, (prune, Recovery(training=settings)), context)
    inputs = toys.rows(SHAPE).inputs
    wanted, worse, better = (
        torch.from_numpy(load(store, digest, "eager")(inputs)).log_softmax(1)
        for digest in (parent, pruned, recovered)
    )
    assert divergence(better, wanted) < 0.5 * divergence(worse, wanted)


def test_recoveries_in_a_row_are_one_training_whose_settings_change(store: Store) -> None:
    """Without momentum and with a constant rate nothing tells two recoveries from one that is as long."""

    def recovery(
        epochs: int, lr: float = 0.02, schedule: Literal["constant", "cosine"] = "constant"
    ) -> Recovery:
        return Recovery(
            training=Training(
                epochs=epochs,
                batch_size=16,
                lr=lr,
                momentum=0.0,
                schedule=schedule,
                warmup=0.0,
                loss=DistillationLoss(),
                augment=Augment(flip=True, crop=1, views=3),
            )
        )

    module, signature, settings = toys.toy("cnn")
    image_parent = toys.put(store, module, signature, settings)
    told: list[int] = []
    context = toys.context((1, 8, 8), on_epoch=lambda report: told.append(report.epoch))
    prune = ChannelPruning(amount=0.5)

    def weights(*recoveries: Recovery) -> dict[str, Tensor]:
        return store.tensors(apply_plan(store, image_parent, (prune, *recoveries), context))

    whole, pieces = weights(recovery(4)), weights(recovery(1), recovery(2), recovery(1))
    assert told == [0, 1, 2, 3] * 2
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    other = weights(recovery(1), recovery(2, lr=0.01), recovery(1))
    assert told[8:] == [1, 2, 3], "the first of them is in the store"
    assert not all(torch.equal(tensor, other[name]) for name, tensor in whole.items())
    check_plan((prune, recovery(1), recovery(1)))
    with pytest.raises(CompressionError, match="'prune_channels' cannot follow 'recover'"):
        check_plan((prune, recovery(1), prune))


def test_epochs_count_on_over_steps_that_are_in_the_store(store: Store, parent: str) -> None:
    told: list[int] = []
    context = toys.context(SHAPE, on_epoch=lambda report: told.append(report.epoch))
    once = Training(epochs=1, batch_size=32, lr=0.02, loss=DistillationLoss())
    plan = (
        ChannelPruning(amount=0.5, rounds=3, recovery=once),
        RECOVERY,
        Qat(to="int8_weight_only", training=once),
    )
    apply_plan(store, parent, plan[:1], context)
    assert told == [0, 1]
    apply_plan(store, parent, plan, context)
    assert told[2:] == [2, 3, 4]


def test_recovery_keeps_pruned_weights_at_zero(store: Store, parent: str) -> None:
    plan = (MagnitudePruning(amount=0.6), RECOVERY)
    digest = apply_plan(store, parent, plan, toys.context(SHAPE))
    before = rebuild(store, apply_plan(store, parent, plan[:1], toys.context(SHAPE))).module.state_dict()
    after = rebuild(store, digest).module.state_dict()
    zeros = 0
    for name, tensor in before.items():
        if name.endswith("weight"):
            assert torch.equal(after[name] == 0, tensor == 0), name
            assert not torch.equal(after[name], tensor)
            zeros += int((tensor == 0).sum())
    assert zeros > 0


def test_zeros_are_read_after_what_cut_the_weights(store: Store, parent: str) -> None:
    """A student that was trained to have zeros loses channels, and recovers in between."""
    thin = Training(
        epochs=2, batch_size=16, lr=0.02, loss=DistillationLoss(), sparsify=Sparsify(amount=0.5, every=2)
    )
    once = Training(epochs=1, batch_size=16, lr=0.02, loss=DistillationLoss())
    prune = ChannelPruning(amount=0.5, rounds=2, recovery=once)
    plan = (Distill(model=toys.MODELS["mlp"][0], training=thin), prune, Recovery(training=once))
    shares = []
    for end in (1, 2, 3):
        module = rebuild(store, apply_plan(store, parent, plan[:end], toys.context(SHAPE))).module
        weights = torch.cat([weight.detach().flatten() for weight in weights_of(module).values()])
        shares.append(float((weights == 0).float().mean()))
    assert shares[0] == pytest.approx(0.5, abs=0.01)
    assert shares[1] > 0.1
    assert shares[2] == shares[1]


def zeros_of(store: Store, digest: str) -> float:
    weights = weights_of(rebuild(store, digest).module).values()
    return float((torch.cat([weight.detach().flatten() for weight in weights]) == 0).float().mean())


def test_zeros_of_a_sparse_training_stay_in_a_recovery(store: Store) -> None:
    module, signature, settings = toys.toy("mlp")
    with torch.no_grad():
        for weight in weights_of(module).values():
            weight.mul_(weight.abs() > weight.abs().median())
    once = Training(epochs=1, batch_size=16, lr=0.02)
    what = {"training": once.model_copy(update={"sparsify": Sparsify(amount=0.5)}).plain()}
    draft = Draft(model=settings, signature=signature, data="toy", seed=1, what=what)
    parent = store.put_artifact(draft, tensors_of(module))
    recovered = apply_plan(store, parent, (Recovery(training=once),), toys.context(SHAPE))
    assert zeros_of(store, recovered) == zeros_of(store, parent) > 0.4
    taught = once.model_copy(update={"loss": DistillationLoss()})
    fresh = (Distill(model=settings, training=taught), Recovery(training=once))
    student = apply_plan(store, parent, fresh, toys.context(SHAPE))
    assert zeros_of(store, student) == 0


def test_zeros_made_between_two_rounds_stay_in_a_recovery(store: Store, parent: str) -> None:
    thin = Training(epochs=2, batch_size=16, lr=0.02, sparsify=Sparsify(amount=0.5, every=2))
    prune = ChannelPruning(amount=0.25, round_to=1, rounds=2, recovery=thin)
    once = Recovery(training=Training(epochs=1, batch_size=16, lr=0.02))
    pruned, recovered = (
        apply_plan(store, parent, plan, toys.context(SHAPE)) for plan in ((prune,), (prune, once))
    )
    assert zeros_of(store, recovered) == zeros_of(store, pruned) > 0.3


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_recovery_without_rows_is_refused(store: Store, parent: str, missing: str) -> None:
    with pytest.raises(CompressionError, match="needs train and validation rows"):
        apply_plan(store, parent, (RECOVERY,), toys.context(SHAPE, **{missing: None}))


def test_the_callers_torch_is_left_alone(store: Store, parent: str) -> None:
    torch.manual_seed(7)
    threads, expected = torch.get_num_threads(), torch.rand(3)
    torch.manual_seed(7)
    apply_plan(
        store, parent, (ChannelPruning(amount=0.5, criterion="random"),), toys.context(SHAPE, threads=2)
    )
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_gives_another_random_choice(store: Store, parent: str) -> None:
    plan = (ChannelPruning(amount=0.5, criterion="random"),)
    first, second = (apply_plan(store, parent, plan, toys.context(SHAPE, seed=seed)) for seed in (0, 1))
    one, two = (store.manifest(digest).decisions[0]["history"] for digest in (first, second))
    assert one != two


def test_a_read_only_calibration_map_is_fine(store: Store, parent: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", toys.rows(SHAPE).inputs)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    digest = apply_plan(store, parent, (StaticInt8(),), toys.context(SHAPE, calibration=rows))
    assert store.manifest(digest).decisions[0]["rows"] == 64
