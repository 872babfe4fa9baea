"""Decodes sources into the files of one cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.data import PARTS, DataSettings, PartName
from orchestrator.config.signature import Signature
from orchestrator.data.dataset import Array, Part, as_float32
from orchestrator.data.source import Source, check_finite, class_names, encode
from orchestrator.data.split import cut, free_shares, shuffled
from orchestrator.errors import DataError

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """Which rows of which source each part takes, and their targets."""

    rows: dict[PartName, tuple[PartName, Array]]
    """Per part: the source's key, and row numbers in the part's order."""
    targets: dict[PartName, Array]
    """Per source key: `int64` [N] or `float32` [N, T]."""
    classes: tuple[str, ...]


def build(
    folder: Path,
    sources: Mapping[PartName, Source],
    settings: DataSettings,
    *,
    seed: int,
    classes: tuple[str, ...],
    transform: Callable[[Array], Array],
) -> dict[str, Any]:
    """Write all parts into `folder` and return what `meta.json` is to say.

    Targets are read first, so that the parts are known before any input is decoded; each decoded block
    then goes straight to its places, and memory holds one block at a time.

    Raises:
        DataError: the data is not usable; one sentence says where.
    """
    plan = _plan(sources, settings, seed, classes)
    offsets = dict(zip(sources, np.cumsum([0, *(source.total for source in sources.values())]), strict=False))
    for name, (key, rows) in plan.rows.items():
        np.save(folder / f"{name}.targets.npy", plan.targets[key][rows])
        np.save(folder / f"{name}.ids.npy", (rows + offsets[key]).astype("<i8"))
    shape: tuple[int, ...] | None = None
    dtype: Any = None
    for key, source in sources.items():
        parts = {name: rows for name, (of, rows) in plan.rows.items() if of == key}
        shape, dtype = _write_inputs(folder, source, parts, transform, shape, dtype)
    return _describe(folder, plan, settings, sources)


def read_parts(folder: Path) -> dict[PartName, Part]:
    """All parts of a cache folder, memory-mapped and read-only."""
    return {
        name: Part(*(_mapped(folder, name, kind) for kind in ("inputs", "targets", "ids"))) for name in PARTS
    }


def part_digest(part: Part) -> str:
    """Hex sha256 over the rows of a part: types, shapes, then the values in order."""
    arrays = (part.inputs, part.targets, part.ids)
    head = [[array.dtype.str, list(array.shape)] for array in arrays]
    digest = hashlib.sha256(canonical(head))
    for array in arrays:
        for chunk in _chunks(array):
            digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def dataset_digest(signature: Signature, digests: Mapping[PartName, str]) -> str:
    """The digest of the whole data set from those of its parts."""
    return fingerprint(
        {"signature": signature.plain(), "parts": {str(name): digest for name, digest in digests.items()}}
    )


def _mapped(folder: Path, name: str, kind: str) -> Array:
    array: Array = np.load(folder / f"{name}.{kind}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _plan(
    sources: Mapping[PartName, Source], settings: DataSettings, seed: int, classes: tuple[str, ...]
) -> Plan:
    for source in sources.values():
        if source.rows == 0:
            raise DataError("the source has no rows", source.name)
    train = sources["train"]
    targets: dict[PartName, Array] = {}
    if settings.task == "classification":
        raw = {key: source.labels() for key, source in sources.items()}
        classes = class_names(raw["train"], classes, train.name)
        targets = {key: encode(labels, classes, sources[key].name) for key, labels in raw.items()}
    else:
        classes = ()
        targets = {key: _finite_targets(source) for key, source in sources.items()}
    named = tuple(key for key in sources if key != "train")
    parts = cut(
        train.rows,
        targets["train"] if classes else None,
        free_shares(settings.shares, named),
        seed=seed,
        origin=train.name,
        classes=classes,
    )
    rows: dict[PartName, tuple[PartName, Array]] = {name: ("train", part) for name, part in parts.items()}
    for key in named:
        rows[key] = (key, shuffled(sources[key].rows, seed))
    return Plan({name: rows[name] for name in PARTS}, targets, classes)


def _finite_targets(source: Source) -> Array:
    values = as_float32(source.values())
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise DataError(
            f"row {wrong[0]} of {source.name} has a target that is missing or not finite",
            values[wrong[0]].tolist(),
            "fill or remove it (rows are counted from 0)",
        )
    return values


def _write_inputs(
    folder: Path,
    source: Source,
    parts: dict[PartName, Array],
    transform: Callable[[Array], Array],
    shape: tuple[int, ...] | None,
    dtype: Any,
) -> tuple[tuple[int, ...], Any]:
    """Decode one source into its parts; returns shape and type of a row, which must be those given."""
    names = list(parts)
    part_of = np.empty(source.rows, dtype=np.int64)
    place_of = np.empty(source.rows, dtype=np.int64)
    for number, rows in enumerate(parts.values()):
        part_of[rows] = number
        place_of[rows] = np.arange(len(rows))
    files: list[Array] = []
    done = 0
    for decoded in source.blocks():
        block = transform(decoded)
        if shape is None:
            shape, dtype = block.shape[1:], block.dtype
        if block.shape[1:] != shape or block.dtype != dtype:
            raise DataError(
                f"rows of {source.name} have another shape than the rows before them",
                f"{block.dtype} {list(block.shape[1:])} instead of {dtype} {list(shape)}",
                "all rows of all files must be alike",
            )
        check_finite(block, done, source.name, source.columns)
        if not files:
            files = [
                _allocate(folder / f"{name}.inputs.npy", (len(parts[name]), *shape), dtype) for name in names
            ]
        here = slice(done, done + len(block))
        for number, file in enumerate(files):
            mine = part_of[here] == number
            file[place_of[here][mine]] = block[mine]
        done += len(block)
    if shape is None or done != source.rows:
        raise DataError(f"{source.name} changed while it was read", f"{done} of {source.rows} rows")
    for file in files:
        file.flush()  # type: ignore[attr-defined]
    return shape, dtype


def _allocate(path: Path, shape: tuple[int, ...], dtype: Any) -> Array:
    """A new .npy file whose blocks are reserved, so that a full disk is an error here.

    A write to a mapped page that the disk has no room for would kill the process instead.
    """
    array: Array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                # Some file systems cannot reserve; then nothing is lost but this check.
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
    return array


def _describe(
    folder: Path, plan: Plan, settings: DataSettings, sources: Mapping[PartName, Source]
) -> dict[str, Any]:
    parts = read_parts(folder)
    signature = _signature(parts["train"], settings, plan.classes)
    digests = {name: part_digest(part) for name, part in parts.items()}
    facts: dict[str, Any] = {
        "source": {key: source.name for key, source in sources.items()},
        "rows": {name: len(part) for name, part in parts.items()},
        "row_digests": digests,
    }
    if sources["train"].columns:
        facts["features"] = list(sources["train"].columns)
    if plan.classes:
        facts["class_counts"] = {
            name: np.bincount(part.targets, minlength=len(plan.classes)).tolist()
            for name, part in parts.items()
        }
    return {
        "digest": dataset_digest(signature, digests),
        "signature": signature.plain(),
        "facts": facts,
    }


def _signature(train: Part, settings: DataSettings, classes: tuple[str, ...]) -> Signature:
    images = train.inputs.dtype == np.uint8
    mean, std = moments(train.inputs)
    regression = settings.task == "regression"
    target_mean, target_std = moments(train.targets) if regression else ((), ())
    return Signature(
        task=settings.task,
        input_shape=train.inputs.shape[1:],
        input_dtype="uint8" if images else "float32",
        outputs=train.targets.shape[1] if regression else len(classes),
        classes=classes,
        mean=mean,
        std=std,
        target_mean=target_mean,
        target_std=target_std,
    )


def moments(rows: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel or feature; the deviation of a constant one counts as 1.

    Two passes in float64 over chunks of fixed size: the same numbers on every machine.
    """
    axes = (0, *range(2, rows.ndim))
    count = rows.size // rows.shape[1]
    mean = sum(chunk.sum(axis=axes, dtype=np.float64) for chunk in _chunks(rows)) / count
    by_channel = mean.reshape(-1, *[1] * (rows.ndim - 2))
    squares = sum(((chunk - by_channel) ** 2).sum(axis=axes) for chunk in _chunks(rows))
    std = np.sqrt(squares / count)
    # Rounding in the mean of a large constant leaves a tiny deviation; scaling by it would blow up noise.
    std = np.where(std > 1e-7 * np.maximum(np.abs(mean), 1e-30), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _chunks(array: Array) -> Iterator[Array]:
    for start in range(0, len(array), CHUNK_ROWS):
        yield array[start : start + CHUNK_ROWS]
