"""Decodes sources into the files of one cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.data import PARTS, DataSettings, ParquetData, PartName
from orchestrator.config.decode import Decode, FeaturesDecode
from orchestrator.config.encoding import Category, Encoding, TableEncoding
from orchestrator.config.signature import Signature
from orchestrator.data.coverage import Coverage
from orchestrator.data.dataset import Array, Part, as_float32, rows_of_class
from orchestrator.data.encode import encode as encode_rows
from orchestrator.data.fit import decode_of, fit
from orchestrator.data.labels import encode_sets, label_names
from orchestrator.data.source import Source, check_finite, class_names, encode
from orchestrator.data.split import cut, cuts, shuffled
from orchestrator.data.stream import Stream
from orchestrator.data.streaming import SampledSource
from orchestrator.errors import DataError

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """Which rows of which source each part takes, and their targets."""

    rows: dict[PartName, tuple[PartName, Array]]
    """Per part: the source's key, and row numbers in the part's order."""
    targets: dict[PartName, Array]
    """Per source key: `int64` [N], `int8` [N, K] or `float32` [N, T]."""
    classes: tuple[str, ...]


def build(
    folder: Path,
    sources: Mapping[PartName, Source],
    settings: DataSettings,
    *,
    seed: int,
    classes: tuple[str, ...],
    transform: Callable[[Array], Array],
    encoding: Encoding | None = None,
    labelled: bool = True,
) -> dict[str, Any]:
    """Write all parts into `folder` and return what `meta.json` is to say.

    Targets are read first, so that the parts are known before any input is decoded, and an encoding is
    fitted to rows of the train part alone; each decoded block then goes straight to its places, and memory
    holds one block at a time.

    Args:
        folder: that is empty.
        sources: by the first part that each fills.
        settings: of the data.
        seed: of the cut.
        classes: their names, where they are given.
        transform: of decoded rows.
        encoding: in place of one that is fitted.
        labelled: whether labels are read.

    Raises:
        DataError: the data is not usable; one sentence says where.
    """
    plan = _plan(sources, settings, seed, classes, labelled)
    offsets = dict(zip(sources, np.cumsum([0, *(source.total for source in sources.values())]), strict=False))
    for name, (key, rows) in plan.rows.items():
        np.save(folder / f"{name}.targets.npy", plan.targets[key][rows])
        np.save(folder / f"{name}.ids.npy", (rows + offsets[key]).astype("<i8"))
    decode = _decode_of(sources, encoding)
    if decode is not None and encoding is None:
        train, rows = sources["train"], np.sort(plan.rows["train"][1])
        encoding = fit(decode, _chosen(train.raw(decode), rows, train.rows), train.name, rows.tolist())
    coverage = None if encoding is None else Coverage(encoding)
    shape: tuple[int, ...] | None = None
    dtype: Any = None
    for key, source in sources.items():
        parts = {name: rows for name, (of, rows) in plan.rows.items() if of == key}
        places = Places(parts, source.rows)
        blocks: Iterator[Array]
        if decode is None or encoding is None or coverage is None:
            blocks = map(transform, source.blocks())
        else:
            blocks = _encoded(source, decode, encoding, coverage, places)
        shape, dtype = _write_inputs(folder, source, places, blocks, shape, dtype)
    described = _describe(folder, plan, settings, sources, encoding)
    if coverage is not None:
        described["facts"]["encoding"] = coverage.facts()
    return described


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


def dataset_digest(
    signature: Signature, digests: Mapping[PartName, str], stream: Stream | None = None
) -> str:
    """The digest of the whole data set from those of its parts, and of the rows that are streamed."""
    parts = {"signature": signature.plain(), "parts": {str(name): digest for name, digest in digests.items()}}
    return fingerprint(parts if stream is None else {**parts, "stream": stream.digest()})


def _mapped(folder: Path, name: str, kind: str) -> Array:
    array: Array = np.load(folder / f"{name}.{kind}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _plan(
    sources: Mapping[PartName, Source],
    settings: DataSettings,
    seed: int,
    classes: tuple[str, ...],
    labelled: bool,
) -> Plan:
    for source in sources.values():
        if source.rows == 0:
            raise DataError("the source has no rows", source.name)
    train = sources["train"]
    targets: dict[PartName, Array] = {}
    if not labelled:
        classes = ()
        targets = {key: np.zeros(source.rows, dtype=np.int64) for key, source in sources.items()}
    elif settings.task == "classification":
        raw = {key: source.labels() for key, source in sources.items()}
        classes = class_names(raw["train"], classes, train.name)
        targets = {key: encode(labels, classes, sources[key].name) for key, labels in raw.items()}
    elif settings.task == "multilabel":
        sets = {key: source.sets() for key, source in sources.items()}
        classes = label_names(sets["train"], classes, train.name)
        targets = {key: encode_sets(found, classes, sources[key].name) for key, found in sets.items()}
    else:
        classes = ()
        targets = {key: _finite_targets(source) for key, source in sources.items()}
    named = tuple(key for key in sources if key != "train")
    rows: dict[PartName, tuple[PartName, Array]] = {
        key: (key, shuffled(sources[key].rows, seed)) for key in named
    }
    cut_from = settings.cut_from if isinstance(settings, ParquetData) else None
    for key, shares in cuts(settings.shares, named, source=cut_from or "train").items():
        parts = cut(
            sources[key].rows,
            targets[key] if classes else None,
            shares,
            seed=seed,
            origin=sources[key].name,
            classes=classes,
            spread=settings.small_classes == "spread",
            lacking=key != "train",
        )
        rows |= {name: (key, part) for name, part in parts.items()}
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


class Places:
    """Where the rows of one source go."""

    def __init__(self, parts: Mapping[PartName, Array], rows: int) -> None:
        self.sizes = {name: len(numbers) for name, numbers in parts.items()}
        self.part_of = np.empty(rows, dtype=np.int64)
        """[rows]: number of a row's part."""
        self.place_of = np.empty(rows, dtype=np.int64)
        """[rows]: its row there."""
        for number, numbers in enumerate(parts.values()):
            self.part_of[numbers] = number
            self.place_of[numbers] = np.arange(len(numbers))


def _decode_of(sources: Mapping[PartName, Source], encoding: Encoding | None) -> Decode | None:
    """How raw values are read: as the settings say, or as named columns where numbers are missing."""
    if encoding is not None:
        return decode_of(encoding)
    train = sources["train"]
    if train.decode is None and any(source.incomplete() for source in sources.values()):
        return FeaturesDecode()
    return train.decode


def _chosen(blocks: Iterator[Any], rows: Array, total: int) -> Iterator[Any]:
    """Of raw blocks the values of these rows, in the source's order."""
    wanted, done = np.zeros(total, dtype=bool), 0
    wanted[rows] = True
    for block in blocks:
        count = rows_in(block)
        mine = np.flatnonzero(wanted[done : done + count])
        done += count
        if len(mine):
            yield (
                {key: _taken(column, mine) for key, column in block.items()}
                if isinstance(block, dict)
                else _taken(block, mine)
            )


def _taken(values: Any, rows: Array) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def rows_in(block: Any) -> int:
    """Number of rows in a block of raw values."""
    return len(next(iter(block.values()))) if isinstance(block, dict) else len(block)


def _encoded(
    source: Source, decode: Decode, encoding: Encoding, coverage: Coverage, places: Places
) -> Iterator[Array]:
    done = 0
    for block in source.raw(decode):
        rows = encode_rows(encoding, block, first_row=done, origin=source.name)
        coverage.add(block, places.part_of[done : done + len(rows)], list(places.sizes))
        done += len(rows)
        yield rows


def _write_inputs(
    folder: Path,
    source: Source,
    places: Places,
    blocks: Iterable[Array],
    shape: tuple[int, ...] | None,
    dtype: Any,
) -> tuple[tuple[int, ...], Any]:
    """Write the blocks of one source into its parts; returns shape and type of a row, which must be those
    given."""
    files: list[Array] = []
    done = 0
    for block in blocks:
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
                _allocate(folder / f"{name}.inputs.npy", (size, *shape), dtype)
                for name, size in places.sizes.items()
            ]
        here = slice(done, done + len(block))
        for number, file in enumerate(files):
            mine = places.part_of[here] == number
            file[places.place_of[here][mine]] = block[mine]
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
    folder: Path,
    plan: Plan,
    settings: DataSettings,
    sources: Mapping[PartName, Source],
    encoding: Encoding | None,
) -> dict[str, Any]:
    parts = read_parts(folder)
    signature = _signature(parts["train"], settings, plan.classes, encoding)
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
            name: rows_of_class(part.targets, len(plan.classes)).tolist() for name, part in parts.items()
        }
    stream = None
    train = sources["train"]
    if isinstance(train, SampledSource):
        stream = train.stream
        stream.save(folder)
        facts["stream"] = {
            "files": len(stream.files),
            "rows": stream.rows,
            "class_counts": train.class_counts,
            "digest": stream.digest(),
        }
    return {
        "digest": dataset_digest(signature, digests, stream),
        "signature": signature.plain(),
        "facts": facts,
    }


def _signature(
    train: Part, settings: DataSettings, classes: tuple[str, ...], encoding: Encoding | None
) -> Signature:
    values = settings.task == "regression"
    target_mean, target_std = moments(train.targets) if values else ((), ())
    mean, std = _scale(train.inputs, encoding)
    return Signature.model_validate(
        {
            "task": settings.task,
            "input_shape": train.inputs.shape[1:],
            "input_dtype": train.inputs.dtype.name,
            "outputs": train.targets.shape[1] if values else max(1, len(classes)),
            "classes": classes,
            "mean": mean,
            "std": std,
            "target_mean": target_mean,
            "target_std": target_std,
            "encoding": encoding,
        }
    )


def _scale(rows: Array, encoding: Encoding | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that rows are scaled by: none of tokens and samples, 0 and 1 of categories."""
    if encoding is not None and rows.dtype != np.float32:
        return (), ()
    mean, std = moments(rows)
    if isinstance(encoding, TableEncoding):
        codes = [isinstance(column, Category) for column in encoding.columns]
        mean = tuple(0.0 if code else value for value, code in zip(mean, codes, strict=True))
        std = tuple(1.0 if code else value for value, code in zip(std, codes, strict=True))
    return mean, std


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
