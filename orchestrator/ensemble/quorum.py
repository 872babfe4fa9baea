"""What counts as an answer of a member, and when the members that answered suffice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from orchestrator.config.calibration import Record
from orchestrator.config.ensemble import Boosting, Child, Combined, Member, Node, children
from orchestrator.ensemble.node import Output, identity
from orchestrator.errors import QuorumError


def failed(names: str) -> QuorumError:
    """The error of members without a sound answer, where each must give one."""
    return QuorumError("no sound answer from a required member", names, "every member must answer")


def tolerates(below: Sequence[Child], quorum: int | None, missing: Collection[int]) -> bool:
    """Whether a node can answer without the children at these positions: no required one is among them, and
    at least `quorum` are left (None: all must answer)."""
    if any(below[position].required for position in missing):
        return False
    return len(below) - len(missing) >= (len(below) if quorum is None else quorum)


def answers_without(tree: Node, missing: Collection[Member]) -> bool:
    """Whether a tree can answer every row without these of its members."""
    if not isinstance(tree, Combined):
        sound = identity(tree) not in map(identity, missing)
        return sound and all(answers_without(member, missing) for member in tree.sees)
    below = children(tree)
    lost = [place for place, child in enumerate(below) if not answers_without(child, missing)]
    if isinstance(tree, Boosting) and lost:
        lost = list(range(lost[0], len(below)))
    return tolerates(below, tree.quorum, lost)


def check(below: Sequence[Child], quorum: int | None, lost: Mapping[int, QuorumError]) -> None:
    """Refuse an answer without the children at these positions, if the node must not do without them.

    Raises:
        QuorumError: every lost member is named, with the reason.
    """
    if tolerates(below, quorum, lost):
        return
    names = ", ".join(dict.fromkeys(error.value or "" for error in lost.values()))
    if quorum is None or any(below[position].required for position in lost):
        raise failed(names)
    raise QuorumError("too few sound answers", names, f"{quorum} of {len(below)} members must answer")


def far(least: float, largest: float, record: Record) -> bool:
    """Whether outputs from `least` to `largest` are further outside of the recorded range than it is wide."""
    span = record.high - record.low
    return least < record.low - span or largest > record.high + span


def problem(output: Output | None, rows: int, width: int | None, record: Record | None) -> str | None:
    """What is wrong with a member's output, or None: NaN, a wrong shape or dtype, or wild values.

    Args:
        output: Array [rows, width], or None.
        rows: Number of rows that it was asked for.
        width: Number of output columns, or None while no member has answered yet.
        record: How it answered where the ensemble was fitted. Values further outside of that range than it
            is wide are no answer.
    """
    if output is None:
        return "no output"
    if output.ndim != 2 or output.shape[0] != rows or output.shape[1] != (width or output.shape[1]):
        return f"output shape {list(output.shape)} instead of [{rows}, {width or 'outputs'}]"
    if output.dtype.kind != "f":
        return f"output of {output.dtype} instead of floats"
    if not np.isfinite(output).all():
        return "output is not finite"
    if record is None:
        return None
    least, largest = float(output.min()), float(output.max())
    if far(least, largest, record):
        return f"output {least:.4g} to {largest:.4g}, far outside of {record.low:.4g} to {record.high:.4g}"
    return None
