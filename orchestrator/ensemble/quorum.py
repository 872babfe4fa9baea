"""When the members' answers suffice. For now every asked member must give a sound answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import QuorumError

Output = npt.NDArray[np.floating[Any]]


def require_all(
    names: Sequence[str],
    rows: Sequence[int],
    outputs: Sequence[Output | None],
    failures: Sequence[str | None],
    width: int | None,
) -> tuple[Output, ...]:
    """The outputs, if every member gave a sound one; NaN or a wrong shape counts as no answer.

    Args:
        names: Asked members.
        rows: Number of rows that each was asked for.
        outputs: Arrays [rows, width], or None.
        failures: Why a member has no output, or None.
        width: Number of output columns, or None while no member has answered yet.

    Raises:
        QuorumError: names every member without a sound answer, and why.
    """
    sound: list[Output] = []
    problems: list[str] = []
    for name, count, output, failure in zip(names, rows, outputs, failures, strict=True):
        problem = failure or _unsound(output, count, width)
        if problem is None and output is not None:
            sound.append(output)
            width = output.shape[1]
        else:
            problems.append(f"{name} ({problem})")
    if problems:
        raise QuorumError(
            "no sound answer from a required member", ", ".join(problems), "every member must answer"
        )
    return tuple(sound)


def _unsound(output: Output | None, rows: int, width: int | None) -> str | None:
    """What is wrong with an output, or None."""
    if output is None:
        return "no output"
    if output.ndim != 2 or output.shape[0] != rows or output.shape[1] != (width or output.shape[1]):
        return f"output shape {list(output.shape)} instead of [{rows}, {width or 'outputs'}]"
    if not np.isfinite(output).all():
        return "output is not finite"
    return None
