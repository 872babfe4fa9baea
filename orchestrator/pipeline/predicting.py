"""Many rows at once: a fitted ensemble over Parquet files, by Ray Data on all nodes.

One output file for each input file, with as many rows in the same order. A file appears when it is whole, and
notes what made it: a job that was stopped or killed skips what is finished when it is started again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from orchestrator.cluster import connected, cores_in_use, inside_job
from orchestrator.config.base import fingerprint
from orchestrator.config.data import Image
from orchestrator.config.ensemble import Spec
from orchestrator.config.signature import Signature
from orchestrator.data.fit import columns_of, decode_of
from orchestrator.data.images import Decoder
from orchestrator.data.parquet import ParquetInputs, reading
from orchestrator.data.source import check_finite
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import Prediction, distinct, predict
from orchestrator.errors import ConfigError, DataError, MemberFailedError, OrchestratorError, of_system
from orchestrator.measure.tasks import class_rules
from orchestrator.pipeline.context import store_root
from orchestrator.runtime.execute import load
from orchestrator.store.store import Store

MADE_BY = b"orchestrator.made_by"
"""Key in an output file's metadata: a digest of the spec, the columns and the input file's size and time."""
_VERSION = 1
"""Raise when answers are written otherwise: older output files are then made anew."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the input are what."""

    input: str | None = None
    """Of images, sound, text or tensors; found from the schema when there is one."""
    features: tuple[str, ...] = ()
    """Columns that make a row, in the order of training. An ensemble that was trained on named columns knows
    them. Others, without them and without a column of images or tensors, take all numeric ones that are not
    named below, in file order."""
    ignore: tuple[str, ...] = ("label",)
    """No input."""
    keep: tuple[str, ...] = ()
    """No input, but copied."""


@dataclass(frozen=True)
class Job:
    """What every worker must know."""

    store: str
    spec: str
    """Digest."""
    columns: Columns
    allow: tuple[str, ...]

    def made_by(self, source: Path) -> bytes:
        """What an output file notes about its making."""
        facts = source.stat()
        file = [facts.st_size, facts.st_mtime_ns]
        made = {"version": _VERSION, "spec": self.spec, "columns": asdict(self.columns), "source": file}
        return fingerprint(made).encode()


def predict_files(
    spec: str,
    *,
    input: str,
    output: str,
    columns: Columns = Columns(),
    store: str | None = None,
    allow: Collection[str] = (),
    workers: int | None = None,
) -> dict[str, int]:
    """Write an answer for every row: `label` and `probabilities`, or `values`, and `degraded`.

    Args:
        spec: ref or digest of an ensemble.
        input: Parquet file, or a folder whose Parquet files are found at any depth.
        output: folder for files of the same names; nodes must share it, as they share `input` and the store.
        columns: of the input.
        store: see `store_root`.
        allow: import paths that members may be built from.
        workers: files in work at once; as many as there are cores for when not given.

    Returns:
        `files` (all), `skipped`, `rows` and `degraded` (of the files made now).

    Raises:
        ConfigError: a relative path in a job, a kept column with a name of the output's own, or the output
            lies in the input.
        NotFoundError: there is no such ensemble.
        DataError: no files, or a file could not be answered; the others are even so.
        ClusterError: Ray cannot be reached or started.
    """
    root, target = _absolute(input, "--input"), _absolute(output, "--output")
    opened = Store(store_root(store), create=False)
    fitted = opened.spec(spec)
    _check_kept(columns, fitted.signature)
    job = Job(opened.location, opened.resolve(spec), columns, tuple(allow))
    files = _files(root, target)
    pending = [pair for pair in files if not _finished(*pair, job)]
    _tell(f"{len(files)} files, {len(files) - len(pending)} finished before")
    rows = degraded = 0
    failures = []
    for found in _work(job, fitted, pending, workers) if pending else ():
        rows, degraded = rows + int(found["rows"]), degraded + int(found["degraded"])
        if found["error"]:
            failures.append((found["source"], found["error"]))
        _tell(f"{found['source']}: {found['error'] or str(found['rows']) + ' rows'}")
    if failures:
        source, reason = min(failures)
        raise DataError(f"{len(failures)} of {len(files)} files are not answered; {source}", reason)
    return {"files": len(files), "skipped": len(files) - len(pending), "rows": rows, "degraded": degraded}


def _work(job: Job, spec: Spec, pending: Sequence[tuple[Path, Path]], workers: int | None) -> Any:
    """One row of figures for each file, as they finish."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with connected():
        ray.data.DataContext.get_current().enable_progress_bars = False
        _, cores = cores_in_use() or (0.0, 1.0)
        most = min(len(pending), workers or max(1, int(cores) // spec.threads))
        items = [{"source": str(source), "target": str(target)} for source, target in pending]
        yield from (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                Worker,
                fn_constructor_args=(job,),
                batch_size=1,
                num_cpus=spec.threads,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            )
            .iter_rows()
        )


class Worker:
    """Answers files; one loads its models once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        store = Store(job.store, create=False)
        self._spec = store.spec(job.spec)
        spec = self._spec
        self._members = {
            member: _own_errors(
                load(
                    store,
                    member.digest,
                    member.execution,
                    threads=spec.threads,
                    batch=spec.batch,
                    allowed=job.allow,
                )
            )
            for member in distinct(spec.tree)
        }

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data with the paths of one file."""
        (source,), (target,) = batch["source"], batch["target"]
        rows, degraded, error = 0, 0, ""
        try:
            rows, degraded = self.answer_file(Path(source), Path(target))
        except OrchestratorError as found:
            error = str(found)
        except OSError as found:  # a full disk, a folder that is not ours: of this file alone, maybe
            error = str(of_system(found) or found)
        return {
            "source": np.array([source]),
            "rows": np.array([rows]),
            "degraded": np.array([degraded]),
            "error": np.array([error]),
        }

    def answer_file(self, source: Path, target: Path) -> tuple[int, int]:
        """Write the answers to one file; how many rows, and how many of them are degraded.

        Raises:
            DataError: the file is damaged, or its columns or rows do not fit the ensemble.
            QuorumError: too few members can answer.
        """
        columns, signature = self._job.columns, self._spec.signature
        made_by = self._job.made_by(source)
        inputs = ParquetInputs(
            source,
            _decoder(signature),
            wanted=columns.input,
            features=columns.features or columns_of(signature.encoding),
            others=(*columns.ignore, *columns.keep),
            decode=None if signature.encoding is None else decode_of(signature.encoding),
        )
        there = inputs.schema.names
        for name in columns.keep:
            if name not in there:
                raise DataError(f"a column to keep is not in {source.name}", name, f"it has {there}")
        with reading(source):
            kept = pq.read_table(source, columns=list(columns.keep)) if columns.keep else None
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid4().hex}")
        done = degraded = 0
        writer: pq.ParquetWriter | None = None
        try:
            for block in inputs.encoded(signature.encoding):
                _check_fits(block, inputs, signature)
                check_finite(block, done, inputs.name, inputs.columns)
                prediction = predict(self._spec.tree, self._members, block, signature.task, guarded=False)
                table = _table(prediction, signature, None if kept is None else kept.slice(done, len(block)))
                if writer is None:
                    schema = table.schema.with_metadata({MADE_BY: made_by})
                    writer = pq.ParquetWriter(temporary, schema)
                writer.write_table(table.cast(writer.schema))
                done, degraded = done + len(block), degraded + int(prediction.degraded.sum())
            if writer is None:
                raise DataError("the file has no rows", source)
            writer.close()
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return done, degraded


def _own_errors(call: Callable[[npt.NDArray[Any]], Output]) -> Callable[[npt.NDArray[Any]], Output]:
    """The member; whatever it raises is a member's failure, as where it is served."""

    def asked(rows: npt.NDArray[Any]) -> Output:
        try:
            return call(rows)
        except OrchestratorError:
            raise
        except Exception as error:
            raise MemberFailedError("a member failed", f"{type(error).__name__}: {error}") from error

    return asked


def _decoder(signature: Signature) -> Decoder:
    """Image files become what the ensemble takes."""
    if len(signature.input_shape) != 3:
        return Decoder(Image())
    channels, height, width = signature.input_shape
    return Decoder(Image(mode="L" if channels == 1 else "RGB", size=(height, width)))


def _table(prediction: Prediction, signature: Signature, kept: pa.Table | None) -> pa.Table:
    columns: dict[str, Any] = {} if kept is None else {name: kept[name] for name in kept.column_names}
    if prediction.probs is None:
        columns["values"] = _lists(prediction.outputs)
    else:
        chosen, names = class_rules(signature.task).chosen(prediction.probs), signature.classes
        if signature.task == "multilabel":
            there = [[names[place] for place in np.flatnonzero(row)] for row in chosen]
            columns["labels"] = pa.array(there, pa.list_(pa.string()))
        else:
            columns["label"] = [names[label] for label in chosen] if names else chosen
        columns["probabilities"] = _lists(prediction.probs)
    columns["degraded"] = prediction.degraded
    return pa.table(columns)


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _check_fits(block: np.ndarray, inputs: ParquetInputs, signature: Signature) -> None:
    if block.shape[1:] != signature.input_shape or str(block.dtype) != signature.input_dtype:
        raise DataError(
            f"the rows of {inputs.name} do not fit the ensemble ({', '.join(inputs.names)})",
            f"{block.dtype} {list(block.shape[1:])}",
            f"it takes {signature.input_dtype} {list(signature.input_shape)}: name --column or --features",
        )


def _check_kept(columns: Columns, signature: Signature) -> None:
    own = {
        "regression": ("values",),
        "multilabel": ("labels", "probabilities"),
        "classification": ("label", "probabilities"),
    }
    for name in columns.keep:
        if name in (*own[signature.task], "degraded"):
            raise ConfigError("a kept column has the name of an answer's", name, "rename it in the input")


def _absolute(path: str, option: str) -> Path:
    if inside_job() and not Path(path).expanduser().is_absolute():
        raise ConfigError(f"inside a Ray job {option} must be an absolute path", path)
    return Path(path).expanduser().absolute()


def _files(root: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each input file and its output file."""
    if not root.is_dir():
        found = [root] if root.is_file() else []
        folder = root.parent
    else:
        found = sorted(path for path in root.rglob("*.parquet") if not path.name.startswith("."))
        folder = root
    if not found:
        raise DataError("no Parquet file is there", root)
    if target == folder or (root.is_dir() and folder in target.parents):
        raise ConfigError("the output folder must lie outside of the input", target)
    return [(path, target / path.relative_to(folder)) for path in found]


def _finished(source: Path, target: Path, job: Job) -> bool:
    if not target.is_file():
        return False
    try:
        with reading(target):
            return (pq.read_schema(target).metadata or {}).get(MADE_BY) == job.made_by(source)
    except DataError:  # a power cut left part of it: it is made anew
        return False


def _tell(text: str) -> None:
    print(f"predict: {text}", file=sys.stderr, flush=True)
