"""Batches of a train part that is read anew in each epoch: mixed in a window, cut into steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from orchestrator.config.streaming import training_complaint
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.data.stream import Piece, Stream, share_of
from orchestrator.errors import ConfigError
from orchestrator.training.batches import Batch, spread, steps_of, wrap_array

Blocks = Callable[[Sequence[Piece]], Iterator[Part]]
"""Reads pieces one after another and gives their rows, some at a time."""


class Streamed:
    """Batches from files (see `Batches`). What they hold is a function of the files, seed, epoch, rank and
    world, so that a training goes on anywhere as if it had never stopped."""

    def __init__(self, stream: Stream, training: Training, seed: int, blocks: Blocks) -> None:
        """
        Raises:
            ConfigError: the training asks for what a stream cannot give.
        """
        complaint = training_complaint(training)
        if complaint is not None:
            raise ConfigError(f"training.{complaint}")
        self.count, self.steps = stream.rows, steps_of(stream.rows, training.batch_size)
        self._stream, self._seed, self._blocks = stream, seed, blocks

    def epoch(
        self, epoch: int, device: torch.device, channels_last: bool, rank: int, world: int, first: int = 0
    ) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `first` on; those before are read and left.

        Each rank reads a share of its own and cuts it into as many steps as the others do.
        """
        pieces = list(share_of(self._stream, self._seed, epoch, rank, world))
        mixed = self._mixed(pieces, np.random.default_rng([self._seed, epoch, rank]))
        shares = np.diff(self.count * np.arange(world + 1) // world).tolist()
        sizes = ([self._size(rows, step) for rows in shares] for step in range(self.steps))
        mine = regrouped(mixed, (self._size(shares[rank], step) for step in range(self.steps)))
        for step, (part, all_ranks) in enumerate(zip(mine, sizes, strict=True)):
            if step >= first:
                yield Batch(
                    inputs=spread(wrap_array(part.inputs), device, channels_last),
                    targets=wrap_array(part.targets).to(device),
                    teacher=None,
                    share=len(part) * world / sum(all_ranks),
                )

    def _size(self, rows: int, step: int) -> int:
        """Rows of a step of so many rows in all: nearly equal ones, the larger ones first."""
        return rows // self.steps + (step < rows % self.steps)

    def _mixed(self, pieces: Sequence[Piece], random: np.random.Generator) -> Iterator[Part]:
        """The rows of pieces, in a random order within each window of `shuffle` rows."""
        rows, window = sum(piece.take for piece in pieces), self._stream.shuffle
        sizes = (min(window, rows - start) for start in range(0, rows, window))
        # Not a loop, whose variable would hold a window longer than it is needed.
        return map(partial(_in_random_order, random), regrouped(self._blocks(pieces), sizes))


def _in_random_order(random: np.random.Generator, part: Part) -> Part:
    order = random.permutation(len(part))
    return Part(part.inputs[order], part.targets[order], part.ids[order])


def regrouped(parts: Iterator[Part], sizes: Iterable[int]) -> Iterator[Part]:
    """The same rows in the same order, in parts of these sizes; beside the one that it makes it holds one of
    those given. They are copies: a view would keep all rows that it is of."""
    rest: list[Part] = []
    for size in sizes:
        yield _next(size, rest, parts)


def _next(size: int, rest: list[Part], parts: Iterator[Part]) -> Part:
    """So many rows, first those of `rest`, which holds at most one part, before and after."""
    if not rest:
        rest.append(next(parts))
    found = Part(*(np.empty((size, *array.shape[1:]), array.dtype) for array in vars(rest[0]).values()))
    done = 0
    while done < size:
        if not rest:
            rest.append(next(parts))
        done += _move(rest, found, done)
    return found


def _move(rest: list[Part], found: Part, done: int) -> int:
    """Rows off the front of `rest` to their place in `found`, as many as fit; how many they were."""
    given = rest.pop()
    count = min(len(given), len(found) - done)
    for place, array in zip(vars(found).values(), vars(given).values(), strict=True):
        place[done : done + count] = array[:count]
    if count < len(given):
        rest.append(Part(*(array[count:] for array in vars(given).values())))
    return count
