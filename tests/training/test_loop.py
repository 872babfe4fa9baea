"""The loop: learning, determinism, resume, early stop, masks, clear failures."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.measure import Metric
from orchestrator.config.model import ResNet9, ResNet9Kwargs
from orchestrator.config.signature import Signature
from orchestrator.config.training import Augment, CustomLoss, DistillationLoss, Training
from orchestrator.data.dataset import Part
from orchestrator.errors import ConfigError, CorruptArtifactError, ModelError, TrainingError
from orchestrator.models.build import build
from orchestrator.models.resnet import WhiteningConv
from orchestrator.training import loop
from orchestrator.training.batches import Rows, order, steps_of
from orchestrator.training.loop import initialize, train
from orchestrator.training.state import FACTS, TENSORS, EpochReport, TrainState
from tests.training.toy import FEATURES, IMAGES, QUICK, VALUES, digest, module_of, part, run

EVERYTHING = Training(
    epochs=4,
    batch_size=16,
    lr=0.05,
    precision="bf16",
    channels_last=True,
    grad_clip=1.0,
    patience=10,
    augment=Augment(flip=True, crop=1, views=3),
)


@pytest.mark.parametrize("signature", [FEATURES, IMAGES], ids=["rows", "images"])
def test_a_classifier_learns(signature: Signature) -> None:
    reports, state = run(module_of(signature), signature, QUICK.model_copy(update={"epochs": 8}))
    assert [report.epoch for report in reports] == list(range(8))
    assert reports[-1].metric >= 0.9
    assert reports[-1].loss < reports[0].loss
    assert state.finished
    assert state.curve == reports


def test_a_regression_learns_every_target_in_its_own_units() -> None:
    settings = Training(epochs=30, batch_size=16, lr=0.01, optimizer="adamw", schedule="cosine")
    module = module_of(VALUES)
    reports, _ = run(module, VALUES, settings, metric=Metric(name="rmse"))
    rows = part(VALUES, 50, seed=1)
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(rows.inputs)).numpy()
    errors = np.sqrt(np.square(outputs - rows.targets).mean(axis=0)) / np.array(VALUES.target_std)
    assert reports[-1].metric < reports[0].metric
    assert (errors < 0.5).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_equal_seeds_give_equal_weights(optimizer: str) -> None:
    settings = EVERYTHING.model_copy(update={"optimizer": optimizer, "epochs": 2})
    digests = {digest(run(module_of(IMAGES), IMAGES, settings)[1].weights) for _ in range(2)}
    assert len(digests) == 1
    other = run(module_of(IMAGES), IMAGES, settings, seed=4)[1]
    assert digest(other.weights) not in digests


def test_the_callers_torch_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    module = module_of(IMAGES)
    for _ in train(
        module, part(IMAGES), part(IMAGES), QUICK, signature=IMAGES, metric=Metric(), seed=1, threads=1
    ):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, optimizer: str, stop: int) -> None:
    settings = EVERYTHING.model_copy(update={"optimizer": optimizer})
    whole, expected = run(module_of(IMAGES), IMAGES, settings)

    state = TrainState()
    reports = train(
        module_of(IMAGES),
        part(IMAGES),
        part(IMAGES, 50, seed=1),
        settings,
        signature=IMAGES,
        metric=Metric(),
        seed=3,
        threads=1,
        state=state,
    )
    for report in reports:
        if report.epoch + 1 == stop:
            break
    state.save(tmp_path)
    module = module_of(IMAGES, seed=77)  # its fresh weights must not matter
    rest, resumed = run(module, IMAGES, settings, state=TrainState.load(tmp_path))

    assert [report.epoch for report in rest] == list(range(stop, 4))
    assert digest(resumed.model) == digest(expected.model)
    assert digest(resumed.weights) == digest(expected.weights)
    assert digest(module.state_dict()) == digest(expected.weights)
    assert [r.metric for r in resumed.curve] == [r.metric for r in whole]


def test_whitening_is_set_once_from_train_rows_and_kept() -> None:
    settings = ResNet9(kwargs=ResNet9Kwargs(width=4, whiten=True))
    module = build(settings, IMAGES, seed=0)
    stem = next(found for found in module.modules() if isinstance(found, WhiteningConv))
    fresh = stem.conv.weight.clone()
    run(module, IMAGES, QUICK)
    set_once = stem.conv.weight.clone()
    assert not torch.equal(set_once, fresh)
    rows = torch.from_numpy(part(IMAGES).inputs)
    with torch.no_grad():
        seen = stem.conv(module.get_submodule("preprocess")(rows))[:, : stem.outputs // 2]
    covariance = torch.cov(seen.transpose(0, 1).flatten(1))
    variances = torch.diag(covariance)
    assert (covariance - torch.diag(variances)).abs().max() < 0.02
    assert ((variances > 0.9) & (variances < 1.01)).all()

    other = part(IMAGES, 40, seed=9)
    assert stem.initialized.item() == 1
    initialize(module, other)
    assert torch.equal(stem.conv.weight, set_once)


def test_a_finished_state_trains_nothing(tmp_path: Path) -> None:
    _, done = run(module_of(FEATURES), FEATURES)
    done.save(tmp_path)
    module = module_of(FEATURES, seed=8)
    reports, _ = run(module, FEATURES, state=TrainState.load(tmp_path))
    assert reports == []
    assert digest(module.state_dict()) == digest(done.weights)


@pytest.mark.parametrize("damage", [TENSORS, FACTS])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    run(module_of(FEATURES), FEATURES)[1].save(tmp_path)
    content = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifactError, match=f"remove {tmp_path.parent} and train again"):
        TrainState.load(tmp_path)


class TestEarlyStop:
    """The validation metric is scripted, so that the best epoch is known."""

    def _run(self, values: list[float], metric: str, patience: int | None) -> tuple[list[EpochReport], bool]:
        settings = QUICK.model_copy(update={"epochs": 8, "patience": patience})
        module, state, snapshots = module_of(FEATURES), TrainState(), []
        with patch.object(loop, "score", side_effect=values):
            reports = train(
                module,
                part(FEATURES),
                part(FEATURES),
                settings,
                signature=FEATURES,
                metric=Metric.model_construct(name=metric),
                seed=0,
                state=state,
            )
            found = []
            for report in reports:
                found.append(report)
                snapshots.append(digest(module.state_dict()))
        assert state.best_epoch is not None
        kept = digest(module.state_dict())
        assert kept == digest(state.weights)
        return found, kept == snapshots[state.best_epoch] != snapshots[-1]

    def test_stops_after_patience_and_keeps_the_best(self) -> None:
        reports, best_kept = self._run([0.5, 0.8, 0.7, 0.8, 0.9], "accuracy", patience=2)
        assert len(reports) == 4
        assert best_kept

    def test_less_is_better_for_an_error(self) -> None:
        reports, best_kept = self._run([0.5, 0.3, 0.4, 0.4], "rmse", patience=2)
        assert len(reports) == 4
        assert best_kept

    def test_without_patience_the_last_weights_stay(self) -> None:
        reports, best_kept = self._run([0.9, *[0.1] * 7], "accuracy", patience=None)
        assert len(reports) == 8
        assert not best_kept


def test_masked_weights_stay_zero_and_others_learn() -> None:
    module = module_of(IMAGES)
    before = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    masks = {name: tensor.abs() > tensor.abs().median() for name, tensor in before.items() if tensor.ndim > 1}
    run(module, IMAGES, EVERYTHING, masks=masks)
    assert masks
    for name, tensor in module.named_parameters():
        if name in masks:
            assert not tensor[~masks[name]].any()
            assert not torch.equal(tensor[masks[name]], before[name][masks[name]])


def test_a_loss_that_explodes_is_named_with_its_epoch() -> None:
    settings = Training(epochs=3, lr=1e30, warmup=0.0, batch_size=16)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1 of 3.*lower lr"):
        run(module_of(VALUES), VALUES, settings)


def test_weights_that_explode_in_the_last_step_of_an_epoch_are_named_with_it() -> None:
    settings = Training(epochs=3, lr=1e20, warmup=0.0, batch_size=128, schedule="constant")
    with pytest.raises(TrainingError, match=r"output is not finite in epoch 1 of 3.*lower lr"):
        run(module_of(VALUES), VALUES, settings)


HERE = (torch.device("cpu"), False, 0, 1)
"""Device, memory format, rank and world of an epoch."""


class TestDistillation:
    settings = QUICK.model_copy(update={"loss": DistillationLoss(temperature=2.0, weight=1.0), "epochs": 12})

    def test_a_student_follows_its_teacher_without_labels(self) -> None:
        teacher = module_of(FEATURES)
        run(teacher, FEATURES, QUICK.model_copy(update={"epochs": 8}))
        rows = part(FEATURES)
        unlabelled = Part(rows.inputs, np.full_like(rows.targets, -1), rows.ids)
        reports, _ = run(
            module_of(FEATURES, seed=5), FEATURES, self.settings, train=unlabelled, teacher=teacher.eval()
        )
        assert reports[-1].metric >= 0.9

    def test_a_function_and_its_stored_outputs_give_equal_students(self) -> None:
        teacher = module_of(IMAGES, seed=1).eval()
        augmented = Augment(flip=True, crop=2, views=2)
        settings = self.settings.model_copy(update={"augment": augmented, "epochs": 3})
        rows = Rows(part(IMAGES), augmented, 3, 16, None)
        stored = np.stack([rows.outputs_of(teacher, view).numpy() for view in range(2)])
        by_function = run(module_of(IMAGES), IMAGES, settings, teacher=teacher)[1]
        by_table = run(module_of(IMAGES), IMAGES, settings, teacher=stored)[1]
        assert digest(by_function.weights) == digest(by_table.weights)

    def test_a_teacher_says_what_mixtures_show(self) -> None:
        teacher = module_of(IMAGES, seed=1).eval()
        mixed = Augment(flip=True, cutmix=0.5, views=2)
        rows = Rows(part(IMAGES), mixed, 3, 16, teacher)
        found = list(rows.epoch(1, *HERE))
        struck = sum(int((batch.targets < 0).sum()) for batch in found)
        assert 0.3 * rows.count < struck < 0.7 * rows.count
        for batch in found:
            assert batch.teacher is not None
            torch.testing.assert_close(batch.teacher, teacher(batch.inputs), rtol=1e-4, atol=1e-4)
        plain = list(Rows(part(IMAGES), Augment(flip=True, views=2), 3, 16, None).epoch(1, *HERE))
        for batch, before in zip(found, plain, strict=True):
            changed = (batch.inputs != before.inputs).flatten(1).any(1)
            assert torch.equal(batch.targets[batch.targets >= 0], before.targets[batch.targets >= 0])
            assert not changed[batch.targets >= 0].any()
        settings = self.settings.model_copy(update={"augment": mixed, "epochs": 2})
        assert np.isfinite(run(module_of(IMAGES), IMAGES, settings, teacher=teacher)[0][-1].loss)

    def test_outputs_of_too_few_views_are_refused(self) -> None:
        settings = self.settings.model_copy(update={"augment": Augment(flip=True, views=2)})
        with pytest.raises(TrainingError, match="2 views of 70 rows"):
            run(module_of(IMAGES), IMAGES, settings, teacher=np.zeros((70, 3), np.float32))

    def test_no_teacher_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="needs a teacher"):
            run(module_of(FEATURES), FEATURES, self.settings)


def test_steps_are_nearly_equal_and_cover_every_row_once() -> None:
    rows = Rows(part(FEATURES, 70), Augment(), seed=1, batch_size=16, teacher=None)
    cpu = torch.device("cpu")
    batches = list(rows.epoch(2, cpu, False, 0, 1))
    assert [len(batch.targets) for batch in batches] == [14] * 5
    assert len(batches) == rows.steps == steps_of(70, 16)
    assert sorted(order(70, 1, 2)) == list(range(70))
    assert list(order(70, 1, 2)) != list(order(70, 1, 3))


def test_ranks_share_each_step_and_their_mean_is_the_rows_mean() -> None:
    rows = Rows(part(FEATURES, 21), Augment(), seed=1, batch_size=8, teacher=None)
    cpu = torch.device("cpu")
    alone = list(rows.epoch(0, cpu, False, 0, 1))
    ranks = [list(rows.epoch(0, cpu, False, rank, 2)) for rank in range(2)]
    for whole, left, right in zip(alone, *ranks, strict=True):
        parts = torch.cat([left.inputs, right.inputs])
        assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.inputs.tolist()))
        mean = (left.inputs.mean(0) * left.share + right.inputs.mean(0) * right.share) / 2
        torch.testing.assert_close(mean, whole.inputs.mean(0))


def test_read_only_rows_are_not_copied() -> None:
    rows = part(IMAGES)
    rows.inputs.setflags(write=False)
    held = Rows(rows, Augment(), 0, 16, None)
    assert held.inputs.data_ptr() == rows.inputs.ctypes.data


def test_torch_compile_or_its_fallback_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> nn.Module:
        raise RuntimeError("no compiler")

    loop.compiler_works.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    reports, _ = run(module_of(FEATURES), FEATURES, QUICK.model_copy(update={"compile": True}))
    loop.compiler_works.cache_clear()
    assert len(reports) == 4


def absolute(outputs: Tensor, targets: Tensor, scale: float) -> Tensor:
    return scale * (outputs - targets).abs().mean()


def test_a_custom_loss_runs_only_when_allowed() -> None:
    path = "tests.training.test_loop:absolute"
    settings = QUICK.model_copy(update={"loss": CustomLoss(loss=path, kwargs={"scale": 0.1})})
    with pytest.raises(ModelError, match="not allowed"):
        run(module_of(VALUES), VALUES, settings)
    reports, _ = run(module_of(VALUES), VALUES, settings, allowed=(path,))
    assert reports[-1].loss < reports[0].loss
