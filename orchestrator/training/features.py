"""Distillation of what happens inside: hints between layers, and where layers look."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.training import Feature
from orchestrator.errors import ConfigError


class Hinted(nn.Module):
    """A student whose training forward also compares its layers with a teacher's.

    In training mode `auxiliary_loss` holds the weighted sum of the last batch, which the training loop adds
    to its loss; the teacher runs on the same rows. In eval mode it is the student alone.
    """

    auxiliary_loss: Tensor | None

    def __init__(
        self, student: nn.Module, teacher: nn.Module, features: Sequence[Feature], rows: Tensor
    ) -> None:
        """Join them; `student` is trained in place.

        Args:
            student: raw rows in, outputs out.
            teacher: takes the same rows; stays in eval mode and gets no gradient.
            features: which layers, by their names in `named_modules()`.
            rows: a few raw rows, to see the layers' shapes: two or more.

        Raises:
            ConfigError: there is no layer of a name, or two layers cannot be compared.
        """
        super().__init__()
        self.student = student
        self.features = tuple(features)
        self._teacher = [teacher.eval()]  # in a list: not a submodule, so neither trained nor saved
        names = [(feature.student, feature.teacher or feature.student) for feature in features]
        self._own = _Taps(student, [name for name, _ in names], "student")
        self._theirs = _Taps(teacher, [name for _, name in names], "teacher")
        self.auxiliary_loss = None
        was_training = student.training
        with torch.no_grad():
            student.eval()(rows)
            teacher(rows)
        student.train(was_training)
        self.projections = nn.ModuleList(
            _projection(feature, own, their)
            for feature, own, their in zip(features, self._own.take(), self._theirs.take(), strict=True)
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Hinted:
        """What `to` does to the student it does to the teacher: both see the same rows on one device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._teacher[0]._apply(fn, recurse)
        return self

    def forward(self, rows: Tensor) -> Tensor:
        """Raw rows [B, ...] -> the student's outputs [B, K]."""
        outputs: Tensor = self.student(rows)
        self.auxiliary_loss = None
        if not self.training:
            self._own.forget()
            return outputs
        with torch.no_grad():
            self._teacher[0](rows)
        compared = zip(self.features, self.projections, self._own.take(), self._theirs.take(), strict=True)
        self.auxiliary_loss = torch.stack(
            [
                feature.weight * _distance(feature, projection, student.float(), teacher.float())
                for feature, projection, student, teacher in compared
            ]
        ).sum()
        return outputs

    def release(self) -> nn.Module:
        """The student as it was given, without what was attached to it."""
        self._own.remove()
        self._theirs.remove()
        return self.student


class _Projection(nn.Module):
    """A linear over the channels. Not an `nn.Linear`: constraints are about the student's layers alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-1, 1) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] or [..., inputs] -> the same with outputs."""
        if x.ndim == 4:
            return functional.conv2d(x, self.weight[:, :, None, None], self.bias)
        return functional.linear(x, self.weight, self.bias)


class _Taps:
    """Keeps the last output of named layers."""

    def __init__(self, module: nn.Module, names: Sequence[str], whose: str) -> None:
        known = dict(module.named_modules())
        for name in names:
            if name not in known or not name:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
                raise ConfigError(f"the {whose} has no layer of this name", name, f"near: {', '.join(near)}")
        self._names, self._whose = names, whose
        self._seen: list[Any] = []
        self.forget()
        self._handles = [
            known[name].register_forward_hook(self._keep(index)) for index, name in enumerate(names)
        ]

    def _keep(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            self._seen[index] = output[0] if isinstance(output, tuple) else output

        return hook

    def take(self) -> list[Tensor]:
        """The outputs since the last call; they are forgotten here.

        Raises:
            ConfigError: a layer gave none: its parent calls its parts, or reads its weights alone.
        """
        found: list[Tensor] = self._seen
        for name, seen in zip(self._names, found, strict=True):
            if not isinstance(seen, Tensor):
                raise ConfigError(
                    f"a layer of the {self._whose} gives no tensor when the model runs",
                    name,
                    "name one inside of it in 'features', or the one that it is part of",
                )
        self.forget()
        return found

    def forget(self) -> None:
        """Keep no output any longer."""
        self._seen = [None] * len(self._names)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _projection(feature: Feature, student: Tensor, teacher: Tensor) -> nn.Module:
    """What brings a student's layer to the teacher's width; it is trained along."""
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise ConfigError(
            "two layers cannot be compared: their outputs must both be [B, C], [B, T, C] or [B, C, H, W]",
            f"{list(student.shape)} and {list(teacher.shape)}",
            "name other layers in 'features'",
        )
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            "two layers of tokens need equally many", f"{student.shape[1]} and {teacher.shape[1]}"
        )
    if feature.kind == "attention":
        if student.ndim == 2:
            raise ConfigError("attention transfer needs places: [B, T, C] or [B, C, H, W]", feature.student)
        return nn.Identity()
    channels = 1 if student.ndim == 4 else -1
    return _Projection(student.shape[channels], teacher.shape[channels])


def _distance(feature: Feature, projection: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar, 0 where they agree.

    hint: Romero et al. 2014 (https://arxiv.org/abs/1412.6550), equation 3, over the teacher's mean square,
    so that one weight fits every layer. attention: Zagoruyko and Komodakis 2016
    (https://arxiv.org/abs/1612.03928), equation 2, with the sum of squares over channels.
    """
    if student.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
        student = functional.adaptive_avg_pool2d(student, (height, width))
        teacher = functional.adaptive_avg_pool2d(teacher, (height, width))
    if feature.kind == "hint":
        error = (projection(student) - teacher).square().mean()
        scaled: Tensor = error / teacher.square().mean().clamp_min(1e-12)
        return scaled
    channels = 1 if student.ndim == 4 else 2
    maps = [
        functional.normalize(layer.square().sum(channels).flatten(1), dim=1) for layer in (student, teacher)
    ]
    return (maps[0] - maps[1]).square().sum(1).mean()
