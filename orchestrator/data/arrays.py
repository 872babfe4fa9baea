"""A data set from arrays in memory, for use from Python."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.base import canonical
from orchestrator.config.data import PARTS, Shares
from orchestrator.config.encoding import Encoding
from orchestrator.config.signature import Signature, Task
from orchestrator.data.dataset import Array, Dataset, Part
from orchestrator.data.encode import encode
from orchestrator.data.labels import encode_sets, from_flags, label_names
from orchestrator.data.split import cut, free_shares
from orchestrator.errors import DataError


def from_arrays(
    inputs: Any,
    targets: npt.ArrayLike,
    *,
    classes: Sequence[str] = (),
    shares: Shares | None = None,
    seed: int = 0,
    encoding: Encoding | None = None,
    task: Task | None = None,
) -> Dataset:
    """Cut rows into the five parts. The signature scales nothing: a model gets the rows as they are.

    Args:
        inputs: uint8 [N, C, H, W], or float32 [N, ...]; with `encoding` raw values, as
            `orchestrator.data.encode.encode` takes them.
        targets: integer classes [N], values [N] or [N, T], or 0 or 1 for each label [N, K].
        classes: names of classes or labels; the numbers when not given.
        shares: of the parts.
        seed: of the cut.
        encoding: makes rows of raw values; `orchestrator.data.fit.fit` fits one to some of them.
        task: what targets are; without it integers [N] are classes and all else values.

    Raises:
        DataError: the arrays do not fit together, hold too few rows to cut, or a value is not finite.
    """
    if encoding is None:
        rows = np.ascontiguousarray(inputs)
        rows = rows if rows.dtype == np.uint8 else rows.astype(np.float32)
    else:
        rows = encode(encoding, inputs, origin="the arrays")
    truth = np.asarray(targets)
    if rows.ndim < 2 or truth.ndim not in (1, 2) or len(rows) != len(truth):
        raise DataError(
            "inputs [N, ...] and targets [N] or [N, T] need the same N", f"{rows.shape}, {truth.shape}"
        )
    if not len(rows):
        raise DataError("the arrays have no rows", fix="give some")
    channels = 0 if rows.dtype in (np.int32, np.int16) else rows.shape[1]
    plain = {"input_shape": rows.shape[1:], "input_dtype": str(rows.dtype), "encoding": encoding}
    scale = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    _require_finite(rows, "value")
    signature, truth = _read(truth, classes, task, {**plain, **scale})
    _require_finite(truth, "target")
    labels = None if signature.task == "regression" else truth
    wanted = free_shares(shares or Shares(), ())
    cuts = cut(len(rows), labels, wanted, seed=seed, origin="the arrays", classes=signature.classes)
    parts = {name: _part(rows, truth, cuts[name]) for name in (*PARTS,) if name in cuts}
    cutting: list[Any] = [list(rows.shape), seed, wanted, signature.task]
    if classes:
        cutting.append(signature.classes)
    digest = hashlib.sha256(rows.tobytes() + truth.tobytes() + canonical(cutting)).hexdigest()
    return Dataset(parts, signature, digest, {"source": "arrays"}, Path())


def _require_finite(rows: Array, what: str) -> None:
    if rows.dtype.kind != "f":
        return
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim))))
    if len(wrong):
        what = f"row {wrong[0]} of the arrays has a missing or not finite {what}"
        raise DataError(what, fix="fill or remove it (rows are counted from 0)")


def _read(
    truth: Array, classes: Sequence[str], task: Task | None, plain: dict[str, Any]
) -> tuple[Signature, Array]:
    """The signature, and targets as parts hold them."""
    labelled = np.issubdtype(truth.dtype, np.integer) and truth.ndim == 1
    task = task or ("classification" if labelled else "regression")
    if task == "multilabel" and truth.ndim == 2:
        sets = from_flags(truth, "the arrays")
        names = label_names(sets, classes, "the arrays")
        signature = Signature(task=task, outputs=len(names), classes=names, **plain)
        return signature, encode_sets(sets, names, "the arrays")
    if task == "classification" and labelled:
        truth = truth.astype(np.int64)
        count = max(int(truth.max()) + 1, len(classes))
        names = tuple(classes) or tuple(map(str, range(count)))
        if truth.min() < 0 or count > len(names):
            raise DataError(f"classes must lie in 0..{len(names) - 1}", f"{truth.min()} to {truth.max()}")
        return Signature(task=task, outputs=count, classes=names, **plain), truth
    if task == "regression":
        truth = np.ascontiguousarray(truth.reshape(len(truth), -1), dtype=np.float32)
        width = truth.shape[1]
        values = {"target_mean": (0.0,) * width, "target_std": (1.0,) * width}
        return Signature(task=task, outputs=width, **plain, **values), truth
    raise DataError(f"targets do not fit task {task}", f"{truth.dtype} {truth.shape}")


def _part(rows: Array, truth: Array, numbers: Array) -> Part:
    return Part(np.ascontiguousarray(rows[numbers]), truth[numbers], numbers.astype(np.int64))
