"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from orchestrator.config.training import (
    BinaryCrossEntropy,
    CrossEntropy,
    DistillationLoss,
    MeanSquaredError,
    MutualLoss,
    NegativeCorrelation,
    Training,
)
from orchestrator.errors import ConfigError
from orchestrator.training.losses import loss_settings, make_loss, weighed
from tests.training.toy import FEATURES, VALUES

TWO = FEATURES.model_copy(update={"outputs": 2, "classes": ("a", "b")})
LOG3 = math.log(3)
LABELS = TWO.model_copy(update={"task": "multilabel"})


def test_the_task_decides_the_default() -> None:
    assert loss_settings(Training(), FEATURES) == CrossEntropy()
    assert loss_settings(Training(), VALUES) == MeanSquaredError()
    assert loss_settings(Training(), LABELS) == BinaryCrossEntropy()
    assert loss_settings(Training(loss=CrossEntropy(label_smoothing=0.1)), FEATURES) != CrossEntropy()


def test_cross_entropy_with_smoothing() -> None:
    loss = make_loss(CrossEntropy(label_smoothing=0.2), TWO)
    # Probabilities 3/4 and 1/4; the smoothed target is 0.9 and 0.1.
    value = loss(torch.tensor([[LOG3, 0.0]]), torch.tensor([0]), None)
    assert value.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))


def test_class_weights_are_factors_of_rows() -> None:
    outputs, targets = torch.tensor([[LOG3, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    loss = make_loss(CrossEntropy(class_weights=(0.5, 3.0)), TWO)
    expected = (-0.5 * math.log(0.75) + 3 * math.log(2)) / 2
    assert loss(outputs, targets, None).item() == pytest.approx(expected)
    even = make_loss(CrossEntropy(class_weights=(1.0, 1.0), label_smoothing=0.2), TWO)
    plain = make_loss(CrossEntropy(label_smoothing=0.2), TWO)
    assert even(outputs, targets, None).item() == pytest.approx(plain(outputs, targets, None).item())
    with pytest.raises(ConfigError, match="one number a class"):
        make_loss(CrossEntropy(class_weights=(1.0, 1.0, 1.0)), TWO)
    with pytest.raises(ValidationError, match="greater than 0"):
        CrossEntropy(class_weights=(1.0, 0.0))


def test_balanced_classes_weigh_the_same() -> None:
    targets = np.asarray([0] * 6 + [1] * 3 + [3] * 3)
    found = weighed(CrossEntropy(class_weights="balanced"), targets, 4)
    assert isinstance(found, CrossEntropy)
    # The class without rows has no loss either.
    assert found.class_weights == (0.5, 1.0, 1.0, 1.0)
    assert weighed(CrossEntropy(), targets, 4) == CrossEntropy()
    assert "class_weights" not in CrossEntropy().plain()


def test_squared_error_counts_in_deviations_of_each_target() -> None:
    loss = make_loss(MeanSquaredError(), VALUES)  # deviations 50 and 0.1
    value = loss(torch.tensor([[150.0, -5.0]]), torch.tensor([[100.0, -4.8]]), None)
    assert value.item() == pytest.approx((1**2 + 2**2) / 2, rel=1e-5)


def test_a_constant_target_is_no_division_by_zero() -> None:
    constant = VALUES.model_copy(update={"target_std": (0.0, 1.0)})
    value = make_loss(MeanSquaredError(), constant)(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), None)
    assert value.item() == pytest.approx(2.0)


class TestDistillation:
    temperature, weight = 2.0, 0.75
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * LOG3, 0.0]])  # at temperature 2: probabilities 3/4 and 1/4
    soft = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    hard = math.log(2)

    def _loss(self, rows: int, labels: list[int]) -> float:
        loss = make_loss(DistillationLoss(temperature=self.temperature, weight=self.weight), TWO)
        value = loss(self.student.expand(rows, 2), torch.tensor(labels), self.teacher.expand(rows, 2))
        return value.item()

    def test_mixes_the_teachers_and_the_labels_term(self) -> None:
        assert self._loss(1, [1]) == pytest.approx(0.75 * self.soft + 0.25 * self.hard)

    def test_a_row_without_a_label_takes_the_teachers_term_alone(self) -> None:
        labelled = 0.75 * self.soft + 0.25 * self.hard
        assert self._loss(1, [-1]) == pytest.approx(self.soft)
        assert self._loss(2, [1, -1]) == pytest.approx((labelled + self.soft) / 2)

    def test_regression_mixes_squared_errors_and_skips_missing_targets(self) -> None:
        loss = make_loss(DistillationLoss(weight=0.75), VALUES)
        outputs = torch.tensor([[150.0, -5.0]] * 2, requires_grad=True)
        teacher = torch.tensor([[100.0, -5.0]] * 2)  # scaled error 1 and 0: mean 1/2
        targets = torch.tensor([[150.0, -4.8], [math.nan, -4.8]])  # 0 and 2: mean 2
        value = loss(outputs, targets, teacher)
        assert value.item() == pytest.approx(((0.75 * 0.5 + 0.25 * 2) + 0.5) / 2, rel=1e-5)
        value.backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()

    def test_the_gradient_of_the_soft_term_keeps_its_size(self) -> None:
        """The reason for T^2 (section 2 of the paper): high temperatures still teach."""
        sizes = []
        for temperature in (10.0, 100.0):
            student = torch.zeros(1, 2, requires_grad=True)
            loss = make_loss(DistillationLoss(temperature=temperature, weight=1.0), TWO)
            loss(student, torch.tensor([0]), torch.tensor([[1.0, 0.0]])).backward()
            assert student.grad is not None
            sizes.append(student.grad.norm().item())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.02)

    def test_without_the_teachers_outputs_it_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="teacher"):
            make_loss(DistillationLoss(), TWO)(self.student, torch.tensor([0]), None)


def test_a_loss_of_the_other_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs task regression"):
        make_loss(MeanSquaredError(), FEATURES)
    with pytest.raises(ConfigError, match="needs task classification"):
        make_loss(CrossEntropy(), VALUES)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such loss"):
        make_loss(Training(), FEATURES)


def test_distillation_of_logits_by_squared_error() -> None:
    settings = DistillationLoss(form="mse", weight=0.75, temperature=9.0)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -1.0]])
    value = make_loss(settings, TWO)(student, torch.tensor([1]), teacher)
    assert value.item() == pytest.approx(0.75 * (4 + 1) / 2 + 0.25 * math.log(2))


def test_mutual_learning_of_two_models() -> None:
    loss = make_loss(MutualLoss(weight=0.5), TWO)
    # Probabilities 3/4, 1/4 and 1/2, 1/2; both divergences by hand.
    outputs = torch.tensor([[LOG3, 0.0, 0.0, 0.0]], requires_grad=True)
    own = -math.log(0.75) - math.log(0.5)
    first_from_second = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    second_from_first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = loss(outputs, torch.tensor([0]), None)
    assert value.item() == pytest.approx(own + 0.5 * (first_from_second + second_from_first))
    # The other's answer counts as given: to the first model's logit p - y of both terms alone.
    (gradient,) = torch.autograd.grad(value, outputs)
    assert gradient[0, 0].item() == pytest.approx((0.75 - 1) + 0.5 * (0.75 - 0.5))


def test_mutual_learning_of_values() -> None:
    loss = make_loss(MutualLoss(weight=1.0), VALUES)  # deviations 50 and 0.1
    outputs = torch.tensor([[150.0, -5.0, 100.0, -5.0]])
    # Own losses 1/2 and 0; both are one deviation apart in one of two targets.
    assert loss(outputs, torch.tensor([[100.0, -5.0]]), None).item() == pytest.approx(0.5 + 2 * 0.5, rel=1e-4)


def test_negative_correlation_takes_off_what_combining_saves() -> None:
    outputs = torch.tensor([[LOG3, 0.0, 0.0, 0.0]])
    own = [-math.log(0.75), -math.log(0.5)]
    ambiguity = sum(own) / 2 + math.log(0.625)
    value = make_loss(NegativeCorrelation(weight=0.5), TWO)(outputs, torch.tensor([0]), None)
    assert value.item() == pytest.approx(sum(own) - 0.5 * 2 * ambiguity)
    whole = make_loss(NegativeCorrelation(weight=1.0), TWO)(outputs, torch.tensor([0]), None)
    assert whole.item() == pytest.approx(-2 * math.log(0.625))


def test_negative_correlation_of_values_is_that_of_liu_and_yao() -> None:
    one = VALUES.model_copy(update={"outputs": 1, "target_mean": (0.0,), "target_std": (1.0,)})
    outputs, targets = torch.tensor([[1.0, 2.0, 6.0], [0.0, 1.0, 5.0]]), torch.tensor([[2.0], [1.0]])
    mean = outputs.mean(1, keepdim=True)
    penalty = (outputs - mean) * (outputs.sum(1, keepdim=True) - outputs - 2 * mean)
    expected = ((outputs - targets).square() + 0.3 * penalty).mean(0).sum()
    value = make_loss(NegativeCorrelation(weight=0.3), one)(outputs, targets, None)
    assert value.item() == pytest.approx(expected.item())


def test_a_loss_of_several_models_refuses_one() -> None:
    with pytest.raises(ConfigError, match="several models"):
        make_loss(MutualLoss(), TWO)(torch.zeros(1, 2), torch.tensor([0]), None)


def test_binary_cross_entropy_is_the_mean_over_labels() -> None:
    outputs, targets = torch.tensor([[LOG3, -LOG3]]), torch.tensor([[1, 1]], dtype=torch.int8)
    plain = make_loss(BinaryCrossEntropy(), LABELS)
    assert plain(outputs, targets, None).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    weighted = make_loss(BinaryCrossEntropy(class_weights=(1.0, 3.0)), LABELS)
    expected = -(math.log(0.75) + 3 * math.log(0.25)) / 2
    assert weighted(outputs, targets, None).item() == pytest.approx(expected)
    with pytest.raises(ConfigError, match="needs task multilabel"):
        make_loss(BinaryCrossEntropy(), TWO)
    with pytest.raises(ConfigError, match="one number a class"):
        make_loss(BinaryCrossEntropy(class_weights=(1.0,)), LABELS)


def test_balanced_labels_weigh_as_much_there_as_not() -> None:
    targets = np.asarray([[1, 0], [0, 0], [0, 0], [0, 1]], dtype=np.int8)
    targets[0, 1] = 1
    found = weighed(BinaryCrossEntropy(class_weights="balanced"), targets, 2)
    assert isinstance(found, BinaryCrossEntropy)
    assert found.class_weights == (3.0, 1.0)


def test_labels_are_distilled_by_the_teachers_softened_chances() -> None:
    outputs, teacher = torch.tensor([[2 * LOG3, 0.0]]), torch.tensor([[0.0, 2 * LOG3]])
    known, unknown = torch.tensor([[1, 0]], dtype=torch.int8), torch.tensor([[-1, -1]], dtype=torch.int8)
    loss = make_loss(DistillationLoss(temperature=2.0, weight=0.25), LABELS)
    # At temperature 2 the student says 3/4 and 1/2, the teacher 1/2 and 3/4.
    soft = 4 * (-(math.log(0.75) + math.log(0.25)) / 2 + math.log(2)) / 2
    hard = (-math.log(0.9) + math.log(2)) / 2
    assert loss(outputs, known, teacher).item() == pytest.approx(0.25 * soft + 0.75 * hard)
    assert loss(outputs, unknown, teacher).item() == pytest.approx(soft)
    squared = make_loss(DistillationLoss(form="mse", weight=1.0), LABELS)
    assert squared(outputs, known, teacher).item() == pytest.approx(4 * LOG3**2)
