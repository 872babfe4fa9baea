"""Batches cut from arrays in memory, and the teacher's outputs that go with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.training import Augment
from orchestrator.data.dataset import Part
from orchestrator.errors import TrainingError
from orchestrator.training.augment import augment, cutmix, partners, views

TEACHER_BATCH = 256
RESIDENT_SHARE = 0.25
"""Rows are kept on a GPU where they take no more of its free memory than this."""


@dataclass(frozen=True)
class Views:
    """A teacher's outputs on the train rows, read view by view."""

    count: int
    read: Callable[[int], NDArray[Any]]
    """View -> [N, K]"""


Teacher = Callable[[Tensor], Tensor] | NDArray[Any] | Views
"""A function of raw rows [B, ...] -> outputs [B, K] (already in eval mode, on the training's device), or the
outputs themselves: [N, K] of the plain rows, or [V, N, K] of every view, or `Views` of them."""


@dataclass(frozen=True)
class Batch:
    inputs: Tensor
    targets: Tensor
    teacher: Tensor | None
    share: float
    """This rank's rows times world, over the step's rows: makes the mean over ranks the mean over rows."""


def wrap_array(array: NDArray[Any]) -> Tensor:
    """The array as a tensor without a copy; a read-only memory map stays one, so never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def spread(inputs: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """A batch on the device, images in the memory format that the convolutions want."""
    if channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.to(device, non_blocking=True)


def order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The epoch's row order: a function of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def steps_of(rows: int, batch_size: int) -> int:
    """Optimizer steps an epoch."""
    return -(-rows // batch_size)


class Batches(Protocol):
    """Where the batches of an epoch come from."""

    count: int
    """Rows an epoch, over all ranks."""
    steps: int
    """An epoch; the same for all ranks."""

    def epoch(
        self, epoch: int, device: torch.device, channels_last: bool, rank: int, world: int, first: int = 0
    ) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `first` on."""
        ...


class Rows:
    """The rows a model is trained on, in memory (see `Batches`)."""

    def __init__(
        self,
        part: Part,
        settings: Augment,
        seed: int,
        batch_size: int,
        teacher: Teacher | None,
        drawn: NDArray[np.int64] | None = None,
    ) -> None:
        self.inputs = wrap_array(part.inputs)
        self.targets = wrap_array(part.targets)
        self.ids = np.asarray(part.ids, dtype=np.int64)
        self.settings, self.seed = settings, seed
        self.drawn = np.arange(len(part.ids)) if drawn is None else drawn
        self.count = len(self.drawn)
        self.steps = steps_of(self.count, batch_size)
        self._teacher = teacher
        self._resident: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def epoch(
        self, epoch: int, device: torch.device, channels_last: bool, rank: int, world: int, first: int = 0
    ) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `first` on.

        The epoch is cut into steps of nearly equal size, so that no row is dropped and no tiny last batch
        disturbs the batch statistics; each step is dealt to the ranks row by row.
        """
        view = epoch % views(self.settings)
        teacher, everything = self._teacher_outputs(view, device, channels_last), self._inputs_near(device)
        shuffled = self.drawn[order(len(self.drawn), self.seed, epoch)]
        for step in np.array_split(shuffled, self.steps)[first:]:
            mine = step[rank::world]
            index = torch.from_numpy(mine)
            inputs, mixed = self._seen(everything, mine, view)
            targets = self.targets.index_select(0, index)
            targets[mixed] = torch.nan if targets.is_floating_point() else -1  # nobody labelled a mixture
            yield Batch(
                inputs=spread(inputs, device, channels_last),
                targets=targets.to(device),
                teacher=None if teacher is None else teacher.index_select(0, index).to(device),
                share=len(mine) * world / len(step),
            )

    def _seen(self, everything: Tensor, index: NDArray[np.int64], view: int) -> tuple[Tensor, Tensor]:
        """Rows as a view shows them, and which places of the batch hold a mixture of two."""

        def augmented(index: NDArray[np.int64]) -> Tensor:
            inputs = everything.index_select(0, torch.from_numpy(index).to(everything.device))
            return augment(inputs, self.ids[index], view, self.settings, self.seed)

        inputs, share, ids = augmented(index), self.settings.cutmix, self.ids[index]
        if share is None:
            return inputs, torch.empty(0, dtype=torch.int64)
        places, others = partners(ids, view, share, self.seed, len(self.ids))
        mixed = torch.from_numpy(places)
        near = mixed.to(inputs.device)
        inputs[near] = cutmix(inputs[near], augmented(others), ids[places], view, self.seed)
        return inputs, mixed

    def _inputs_near(self, device: torch.device) -> Tensor:
        """All rows; on a card if most of its memory stays free: batches are cut and augmented there."""
        if device.type != "cuda":
            return self.inputs
        if self._resident is None:
            free, _ = torch.cuda.mem_get_info(device)
            fits = self.inputs.nbytes <= free * RESIDENT_SHARE
            self._resident = self.inputs.to(device) if fits else self.inputs
        return self._resident

    def _teacher_outputs(self, view: int, device: torch.device, channels_last: bool) -> Tensor | None:
        """All rows' outputs in one view, in row order: the same after a restart.

        Those of a function are kept, since it would have to run again; of given ones a single view is held.
        """
        if self._teacher is None or view in self._outputs:
            return self._outputs.get(view)
        if callable(self._teacher):
            self._outputs[view] = self.outputs_of(self._teacher, view, device, channels_last)
        else:
            self._outputs = {view: self._given_outputs(self._teacher, view)}
        return self._outputs[view]

    def _given_outputs(self, given: NDArray[Any] | Views, view: int) -> Tensor:
        if not isinstance(given, Views):
            # Outputs of the plain rows alone are those of every view, should there be one only.
            every = given[None] if given.ndim == 2 and views(self.settings) == 1 else given
            given = Views(len(every), every.__getitem__)
        outputs = given.read(view) if view < given.count else np.empty(0)
        if outputs.ndim != 2 or len(outputs) != len(self.ids):
            raise TrainingError(
                f"a teacher's outputs must be [rows, outputs] in each of {views(self.settings)} views of "
                f"{len(self.ids)} rows; in view {view} of {given.count} they are",
                list(outputs.shape),
            )
        return wrap_array(np.ascontiguousarray(outputs, dtype=np.float32))

    def outputs_of(
        self,
        teacher: Callable[[Tensor], Tensor],
        view: int,
        device: torch.device | None = None,
        channels_last: bool = False,
    ) -> Tensor:
        """A teacher's float32 outputs [N, K] on all rows in one view, on the CPU, in row order."""
        parts, device = [], device or torch.device("cpu")
        everything = self._inputs_near(device)
        with torch.no_grad():
            for start in range(0, len(self.ids), TEACHER_BATCH):
                piece = np.arange(start, min(start + TEACHER_BATCH, len(self.ids)))
                inputs, _ = self._seen(everything, piece, view)
                parts.append(teacher(spread(inputs, device, channels_last)).float().cpu())
        return torch.cat(parts)
