"""Pieces of a streamed train part read ahead by Ray Data: tasks beside the worker, on its node."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayTaskError

from orchestrator.config.signature import Signature
from orchestrator.data.dataset import Part
from orchestrator.data.stream import Piece, Stream
from orchestrator.data.streaming import read
from orchestrator.errors import OrchestratorError
from orchestrator.training.streamed import Blocks

BLOCK_BYTES = 8 * 2**20
"""Of a block of rows that crosses to the worker."""
AHEAD_BYTES = 128 * 2**20
"""That a worker's reading tasks may be ahead of it, in the object store."""


class ReadFailedError(RuntimeError):
    """A file cannot be read. No `OrchestratorError`: Ray Train ends all ranks, which wait for this one."""


def read_ahead(stream: Stream, signature: Signature) -> Blocks:
    """Blocks of rows that tasks of Ray Data read and encode; their order is that of the pieces.

    The tasks reserve no cores: those of a small cluster are all the workers'. `stream.readers` bounds how
    many run at a time, `AHEAD_BYTES` how far ahead.

    Args:
        stream: whose pieces.
        signature: of the data set, with its encoding.
    """
    return partial(_blocks, stream, signature)


def _blocks(stream: Stream, signature: Signature, pieces: Sequence[Piece]) -> Iterator[Part]:
    """
    Raises:
        ReadFailedError: a file is damaged, or changed; its text is the sentence that says so.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context: Any = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=AHEAD_BYTES)
    items = [{"piece": asdict(piece)} for piece in pieces]
    reading: Any = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_read, stream, signature),
        batch_size=1,
        batch_format="numpy",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=stream.readers),
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    try:
        for block in reading.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            yield Part(block["inputs"], block["targets"], block["ids"])
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, OrchestratorError):
            raise
        # Ray adds lines of its own to what was said.
        said = type(cause)(cause.what.splitlines()[0], cause.value, cause.fix)
        raise ReadFailedError(str(said)) from None


def _read(
    stream: Stream, signature: Signature, items: dict[str, Any]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """One task: all rows of its pieces, block by block."""
    pieces = [Piece(**piece) for piece in items["piece"]]
    for part in read(stream, pieces, signature):
        yield {"inputs": part.inputs, "targets": part.targets, "ids": part.ids}
