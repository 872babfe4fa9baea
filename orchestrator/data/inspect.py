"""Looks at data and writes a run file for it: what `orchestrator init --data` prints."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from PIL import Image as Pillow

from orchestrator.config.data import FolderData, Image, ParquetData
from orchestrator.config.load import parse_yaml, validate
from orchestrator.config.measure import TASK_METRICS
from orchestrator.config.run import RunConfig
from orchestrator.config.signature import Task
from orchestrator.data.audio import sound_of
from orchestrator.data.columns import Holds, encoded_rows, kind_of, label_rows
from orchestrator.data.folder import FolderSource, list_classes
from orchestrator.data.images import DAMAGED, FORMATS, Decoder
from orchestrator.data.labels import label_names, label_sets
from orchestrator.data.parquet import ParquetInputs, ParquetSource, read_schema
from orchestrator.data.source import Source, class_names
from orchestrator.data.templates import MIXES, MODELS, SEARCH, VOTES
from orchestrator.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "category")
"""Names of a column that can hold nothing but classes."""
TARGET_NAMES = (*LABEL_NAMES, "target", "y")
"""Names of a target column; without one of them the last column is taken."""
ID_NAMES = ("id", "index", "idx", "row_id", "unnamed: 0")
SAMPLE = 64
MOST_CLASSES = 1000
MOST_VALUES = 50
"""Text of more distinct values is no category."""
LARGEST_SIDE = 96
"""Larger images are resized to `RESIZED`: the built-in models are made for small ones."""
RESIZED = 64


@dataclass(frozen=True)
class Finding:
    """What is known about the data."""

    lines: tuple[str, ...]
    """The run file's `data` section."""
    notes: tuple[str, ...]
    """What was seen, for a comment."""
    task: Task
    holds: Holds
    image_side: int | None
    """Shorter side of the images; None of other rows."""
    rows: int
    target_std: float = 1.0


def suggest(path: Path, name: str) -> str:
    """A commented run file (YAML text) for the data at `path`.

    Args:
        path: a Parquet file (a `...test...` file beside a `...train...` file becomes the test part), a
            folder with such files, or an image folder (`class/name.png`, also below `train/` and `test/`).
        name: name of the run.

    Raises:
        DataError: nothing usable is found at `path`.
        ConfigError: `name` cannot name a run.
    """
    finding = _folder(path) if path.is_dir() else _parquet(path)
    text = _text(finding, name, path)
    validate(RunConfig, parse_yaml(text, "the suggested run file"), "the suggested run file")
    return text


def _folder(path: Path) -> Finding:
    files = sorted(path.glob("*.parquet"))
    training = [file for file in files if "train" in file.stem] or files
    if len(training) == 1:
        return _parquet(training[0])
    if training:
        listed = ", ".join(file.name for file in training[:10])
        raise DataError("several Parquet files could hold the training rows", listed, "name one of them")
    nested = path / "train"
    root = nested if nested.is_dir() and any(child.is_dir() for child in nested.iterdir()) else path
    classes = list_classes(root)
    sample = [
        file.read_bytes() for files in classes.values() for file in files[: max(1, SAMPLE // len(classes))]
    ]
    image, side, note = _image_settings(sample, str(root))
    settings = FolderData(root=str(root), image=image)
    source = FolderSource(root, settings, Decoder(image))
    _try_first(source)
    has_test = root == nested and (path / "test").is_dir()
    return Finding(
        lines=(
            "kind: folder",
            f"root: {json.dumps(str(root))}  # one sub-folder a class",
            *(["test: test  # beside the root"] if has_test else []),
            *_image_lines(image),
        ),
        notes=(f"{source.rows} images in {len(classes)} classes: {_short(list(classes))}", note),
        task="classification",
        holds="image",
        image_side=side,
        rows=source.rows,
    )


def _parquet(path: Path) -> Finding:
    schema, rows = read_schema(path)
    if not rows:
        raise DataError("the file has no rows", path, "name the file of the training rows")
    target = _target_column(schema, path.name)
    task, about_target, target_std = _task_of(path, target)
    unusual = {field for field in schema.names if field.lower() in ID_NAMES}
    inputs = ParquetInputs(path, Decoder(Image()), others=(target, *unusual))
    found = _SEEN[inputs.holds](path, inputs, target, unusual)
    settings = ParquetData.model_validate(
        {
            "root": str(path.parent),
            "train": path.name,
            "task": task,
            "target": target,
            "image": found.image,
            **found.settings,
        }
    )
    source = ParquetSource(path, settings, Decoder(found.image))
    side, note = found.side, found.note
    if inputs.holds == "tensor":
        shape = _try_first(source)
        side = min(shape[1:]) if len(shape) == 3 else None
        note = f"column '{_short([inputs.names[0]])}' holds tensors of shape {list(shape)}"
    else:
        _try_first(source)
    return Finding(
        lines=(
            "kind: parquet",
            f"root: {json.dumps(str(path.parent))}",
            f"train: {json.dumps(path.name)}",
            *_siblings(path),
            f"task: {task}",
            *found.lines,
            f"target: {json.dumps(target)}  # {about_target}",
            *_image_lines(found.image),
        ),
        notes=(f"{rows} rows", note),
        task=task,
        holds="image" if side is not None else inputs.holds,
        image_side=side,
        rows=rows,
        target_std=target_std,
    )


@dataclass(frozen=True)
class _Input:
    """What is known about input columns."""

    settings: dict[str, object]
    lines: tuple[str, ...]
    note: str
    image: Image = field(default_factory=Image)
    side: int | None = None


def _see_images(path: Path, inputs: ParquetInputs, *_: object) -> _Input:
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=SAMPLE, columns=list(inputs.names)), None)
    if batch is None:
        raise DataError("the file has no rows", path)
    image, side, note = _image_settings(encoded_rows(batch.column(0), 0, path.name), path.name)
    name = inputs.names[0]
    return _Input({"input": name}, (f"input: {json.dumps(name)}",), note, image, side)


def _see_tensors(_: Path, inputs: ParquetInputs, *__: object) -> _Input:
    name = inputs.names[0]
    return _Input({"input": name}, (f"input: {json.dumps(name)}",), "")


def _see_sound(path: Path, inputs: ParquetInputs, *_: object) -> _Input:
    values: list[Any] = next(inputs.raw(SAMPLE), [])
    sizes = [sound_of(value, None, f"row {row} of {path.name}") for row, value in enumerate(values)]
    if not sizes:
        raise DataError("the file has no rows", path)
    rates = sorted({rate for _, rate in sizes})
    seconds = [count / rate for count, rate in sizes]
    name = inputs.names[0]
    lines = (
        f"input: {json.dumps(name)}",
        "decode: audio  # at the rate of most train rows, long enough for 95 % of them; or name both:",
        f"# decode: {{kind: audio, rate: {rates[0]}, seconds: {max(seconds):.2g}}}",
    )
    rate = _short([f"{rate} Hz" for rate in rates])
    note = f"WAV files of {rate}, {min(seconds):.2g} to {max(seconds):.2g} s"
    return _Input({"input": name, "decode": "audio"}, lines, note)


def _see_text(path: Path, inputs: ParquetInputs, *_: object) -> _Input:
    texts: list[str] = next(inputs.raw(SAMPLE), [])
    if not texts:
        raise DataError("the file has no rows", path)
    name = inputs.names[0]
    longest = max(len(text) for text in texts)
    lines = (
        f"input: {json.dumps(name)}",
        "decode:  # cut into tokens in three ways; a model reads the view that it names",
        "  kind: text",
        "  views: {words: {kind: words}, subwords: {kind: subwords}, ngrams: {kind: ngrams}}",
    )
    return _Input({"input": name, "decode": "text"}, lines, f"texts of up to {longest} characters")


def _see_columns(path: Path, inputs: ParquetInputs, target: str, unusual: Collection[str]) -> _Input:
    others = [name for name in inputs.schema.names if name not in (*inputs.names, *unusual, target)]
    texts = [name for name in others if kind_of(inputs.schema.field(name).type) == "text"]
    counts = {name: len(pq.read_table(path, columns=[name]).column(0).unique()) for name in texts}
    categories = tuple(name for name in texts if counts[name] <= MOST_VALUES)
    features = (*inputs.names, *categories)
    note = f"{len(inputs.names)} numeric columns: {_short(list(inputs.names))}"
    if categories:
        note += f"; {len(categories)} of categories: {_short(list(categories))}"
    named = "decode: features  # clients send rows by column name; missing numbers become the train median"
    return _Input({"features": features, "decode": "features"}, (*_feature_lines(features), named), note)


_SEEN: dict[Holds, Callable[[Path, ParquetInputs, str, Collection[str]], _Input]] = {
    "image": _see_images,
    "tensor": _see_tensors,
    "audio": _see_sound,
    "text": _see_text,
    "numbers": _see_columns,
    "features": _see_columns,
}


def _target_column(schema: pa.Schema, origin: str) -> str:
    names: list[str] = schema.names
    lower = {name.lower(): name for name in reversed(names)}
    for usual in TARGET_NAMES:
        if usual in lower:
            return lower[usual]
    last = next((name for name in reversed(names) if not name.startswith("__index_level_")), None)
    if last is None or kind_of(schema.field(last).type) not in ("number", "text", "texts"):
        raise DataError(f"no target column is found in {origin}", ", ".join(names), "name one 'label'")
    return last


def _task_of(path: Path, target: str) -> tuple[Task, str, float]:
    """Task, a comment on the target column, and its deviation.

    Text is a class; integers are classes when they repeat often, and run from 0 without gaps or stand in
    a column that is called so.
    """
    column = pq.read_table(path, columns=[target]).column(0)
    kind = kind_of(column.type)
    if kind == "text" or pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        labels = label_rows(column, target, path.name)
        distinct = sorted(set(labels.tolist()))
        few = len(distinct) <= min(MOST_CLASSES, max(2, len(labels) // 5))
        gapless = distinct == list(range(len(distinct)))
        if labels.dtype == object or (few and (gapless or target.lower() in LABEL_NAMES)):
            classes = class_names(labels, (), path.name)
            return "classification", f"{len(classes)} classes: {_short(list(classes))}", 1.0
    if kind == "texts" or (kind == "tensor" and _names_labels(column)):
        names = label_names(label_sets(column, target, path.name), (), path.name)
        return "multilabel", f"{len(names)} labels: {_short(list(names))}", 1.0
    if kind != "number":
        return "regression", "a vector of targets", 1.0
    values = np.asarray(column.drop_null().to_numpy(), dtype=np.float64)
    std = float(values.std()) if len(values) else 1.0
    return "regression", f"real values, standard deviation {std:.3g}", std


def _names_labels(column: pa.ChunkedArray) -> bool:
    """Whether lists of numbers stand for labels: whole numbers in lists of any length, else 0 and 1."""
    if isinstance(column.type, pa.BaseExtensionType):
        return False
    kind = column.type.value_type
    if not pa.types.is_fixed_size_list(column.type):
        return bool(pa.types.is_integer(kind))
    flags = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return flags and set(pa.compute.list_flatten(column).cast(pa.int64()).to_pylist()) <= {0, 1}


def _image_settings(sample: list[bytes], origin: str) -> tuple[Image, int, str]:
    """Image settings that make all sampled images alike, the shorter side, and what was seen."""
    sizes, modes = set(), set()
    for number, data in enumerate(sample):
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                sizes.add((image.height, image.width))
                modes.add(image.mode)
        except DAMAGED as error:
            raise DataError(
                f"row {number} of {origin} holds no image", fix=f"supported are {', '.join(FORMATS)}"
            ) from error
    shortest = min(min(size) for size in sizes)
    spoken = [f"{height}x{width}" for height, width in sorted(sizes)]
    seen = f"images of {_short(spoken)} (height x width), {_short(sorted(modes))}"
    resize = None
    if len(sizes) > 1 or max(max(size) for size in sizes) > LARGEST_SIDE:
        side = RESIZED if shortest >= RESIZED else 32
        resize, shortest = (side, side), side
    mode: str | None = "RGB" if len(modes) > 1 else None
    return Image.model_validate({"mode": mode, "size": resize}), shortest, seen


def _image_lines(image: Image) -> list[str]:
    given = {key: value for key, value in image.plain().items() if value is not None}
    return [f"image: {json.dumps(given)}  # every image becomes this"] if given else []


def _feature_lines(inputs: tuple[str, ...]) -> list[str]:
    lines = ["features: ["]
    for name in inputs:
        item = json.dumps(name, ensure_ascii=False)
        if len(lines[-1]) + len(item) > 90:
            lines.append("  ")
        lines[-1] += item + ", "
    lines[-1] = lines[-1].removesuffix(", ") + "]"
    return [line.rstrip() for line in lines]


def _siblings(path: Path) -> list[str]:
    """Files beside a `...train...` file that are other parts by their names."""
    if "train" not in path.name:
        return ["# test: FILE  # without one, a share of the rows becomes the test part"]
    found = []
    for part, words in (("validation", ("validation", "valid", "val")), ("test", ("test",))):
        for word in words:
            other = path.with_name(path.name.replace("train", word))
            if other.is_file():
                found.append(f"{part}: {json.dumps(other.name)}")
                break
    for word in ("oos", "ood"):
        for other in sorted(path.parent.glob("*.parquet")):
            if not other.name.startswith(path.name.partition("train")[0] + word) or "test" not in other.name:
                continue
            found.append(f"elsewhere: {{{word}: {json.dumps(other.name)}}}  # rows that no class fits")
            return found
    return found


def _try_first(source: Source) -> tuple[int, ...]:
    """Decode the first rows, so that what cannot work is said now; returns a row's shape."""
    first = next(source.blocks() if source.decode is None else source.raw(source.decode), None)
    if first is None:
        raise DataError("the source has no rows", source.name)
    shape: tuple[int, ...] = () if source.decode is not None else first.shape[1:]
    return shape


def _short(items: list[str], most: int = 6) -> str:
    shown = ", ".join(" ".join(item.split()) for item in items[:most])
    return shown + (f", ... ({len(items)} in all)" if len(items) > most else "")


def _text(finding: Finding, name: str, path: Path) -> str:
    classify = finding.task != "regression"
    models = MODELS[finding.holds]
    teacher = "{factory: resnet, kwargs: {depth: 14, width: 32}}"
    if (finding.image_side or LARGEST_SIDE) < 16:
        teacher = "{factory: cnn, kwargs: {channels: [64, 128], hidden: 256}}"
    drop = 0.01 if classify else float(f"{0.05 * finding.target_std or 0.01:.2g}")
    metrics = TASK_METRICS[finding.task]
    metric = f"{metrics[0]}  # or {', '.join(metrics[1:])}"
    unit = f"0.01 is one point of {metrics[0]}" if classify else "in the target's unit; 5% of its deviation"
    seen = "\n".join(f"#   {note}" for note in finding.notes)
    data = textwrap.indent("\n".join(finding.lines), "  ")
    body = models.format(
        teacher=teacher,
        epochs=20 if finding.rows >= 5000 else 40,
        batch=128 if finding.rows >= 5000 else 64,
    )
    search = SEARCH.format(drop=drop, unit=unit, blocks=15)
    return (
        f"# Run file for {path.name}. Start it with: orchestrator run FILE\n"
        f"# Seen in the data:\n{seen}\n"
        f"name: {json.dumps(name)}\nseed: 0\n\ndata:\n{data}\n\n"
        f"metric:\n  name: {metric}\n\n{body}\n{search}\n{VOTES if classify else MIXES}"
    )
