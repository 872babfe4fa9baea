"""Looks at data and writes a run file for it: what `orchestrator init --data` prints."""

from __future__ import annotations

import io
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Pillow

from orchestrator.config.data import FolderData, Image, ParquetData
from orchestrator.config.load import parse_yaml, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.signature import Task
from orchestrator.data.columns import encoded_rows, find_input, kind_of, label_rows
from orchestrator.data.folder import FolderSource, list_classes
from orchestrator.data.images import FORMATS, Decoder
from orchestrator.data.parquet import ParquetSource, read_schema
from orchestrator.data.source import Source, class_names
from orchestrator.data.templates import IMAGE_MODELS, MIXES, SEARCH, TABULAR_MODELS, VOTES
from orchestrator.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "category")
"""Names of a column that can hold nothing but classes."""
TARGET_NAMES = (*LABEL_NAMES, "target", "y")
"""Names of a target column; without one of them the last column is taken."""
ID_NAMES = ("id", "index", "idx", "row_id", "unnamed: 0")
SAMPLE = 64
MOST_CLASSES = 1000
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
    image_side: int | None
    """Shorter side of the images; None for feature rows."""
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
        image_side=side,
        rows=source.rows,
    )


def _parquet(path: Path) -> Finding:
    schema, rows = read_schema(path)
    target = _target_column(schema, path.name)
    task, about_target, target_std = _task_of(path, target)
    usual = tuple(field for field in schema.names if field.lower() not in ID_NAMES)
    inputs, kind = find_input(
        pq.read_schema(path), None, (), (target, *set(schema.names) - set(usual)), path.name
    )
    image, side, note = Image(), None, f"{len(inputs)} numeric columns: {_short(list(inputs))}"
    if kind == "encoded":
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=SAMPLE, columns=list(inputs)), None)
        if batch is None:
            raise DataError("the file has no rows", path)
        image, side, note = _image_settings(encoded_rows(batch.column(0), 0, path.name), path.name)
    chosen: dict[str, object] = {"features": inputs} if kind == "number" else {"input": inputs[0]}
    settings = ParquetData.model_validate(
        {
            "root": str(path.parent),
            "train": path.name,
            "task": task,
            "target": target,
            "image": image,
            **chosen,
        }
    )
    source = ParquetSource(path, settings, Decoder(image))
    shape = _try_first(source)
    if kind == "tensor":
        side = min(shape[1:]) if len(shape) == 3 else None
        note = f"column '{inputs[0]}' holds tensors of shape {list(shape)}"
    named = _input_lines(inputs, kind)
    return Finding(
        lines=(
            "kind: parquet",
            f"root: {json.dumps(str(path.parent))}",
            f"train: {json.dumps(path.name)}",
            *_siblings(path),
            f"task: {task}",
            *named,
            f"target: {json.dumps(target)}  # {about_target}",
            *_image_lines(image),
        ),
        notes=(f"{rows} rows", note),
        task=task,
        image_side=side,
        rows=rows,
        target_std=target_std,
    )


def _target_column(schema: pa.Schema, origin: str) -> str:
    names: list[str] = schema.names
    lower = {name.lower(): name for name in reversed(names)}
    for usual in TARGET_NAMES:
        if usual in lower:
            return lower[usual]
    last = next((name for name in reversed(names) if not name.startswith("__index_level_")), None)
    if last is None or kind_of(schema.field(last).type) not in ("number", "text"):
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
    if kind != "number":
        return "regression", "a vector of targets", 1.0
    values = np.asarray(column.drop_null().to_numpy(), dtype=np.float64)
    std = float(values.std()) if len(values) else 1.0
    return "regression", f"real values, standard deviation {std:.3g}", std


def _image_settings(sample: list[bytes], origin: str) -> tuple[Image, int, str]:
    """Image settings that make all sampled images alike, the shorter side, and what was seen."""
    sizes, modes = set(), set()
    for number, data in enumerate(sample):
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                sizes.add((image.height, image.width))
                modes.add(image.mode)
        except (OSError, ValueError, SyntaxError) as error:
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


def _input_lines(inputs: tuple[str, ...], kind: str) -> list[str]:
    if kind != "number":
        return [f"input: {json.dumps(inputs[0])}"]
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
    return found


def _try_first(source: Source) -> tuple[int, ...]:
    """Decode the first rows, so that what cannot work is said now; returns a row's shape."""
    first = next(source.blocks(), None)
    if first is None:
        raise DataError("the source has no rows", source.name)
    shape: tuple[int, ...] = first.shape[1:]
    return shape


def _short(items: list[str], most: int = 6) -> str:
    shown = ", ".join(" ".join(item.split()) for item in items[:most])
    return shown + (f", ... ({len(items)} in all)" if len(items) > most else "")


def _text(finding: Finding, name: str, path: Path) -> str:
    images = finding.image_side is not None
    classify = finding.task == "classification"
    models = IMAGE_MODELS if images else TABULAR_MODELS
    teacher = "{factory: resnet, kwargs: {depth: 14, width: 32}}"
    if not images:
        teacher = "{factory: mlp, kwargs: {widths: [256, 128]}}"
    elif (finding.image_side or 0) < 16:
        teacher = "{factory: cnn, kwargs: {channels: [64, 128], hidden: 256}}"
    drop = 0.01 if classify else float(f"{0.05 * finding.target_std or 0.01:.2g}")
    unit = "0.01 is one point of accuracy" if classify else "in the target's unit; 5% of its deviation"
    seen = "\n".join(f"#   {note}" for note in finding.notes)
    data = textwrap.indent("\n".join(finding.lines), "  ")
    body = models.format(
        teacher=teacher,
        epochs=20 if finding.rows >= 5000 else 40,
        batch=128 if finding.rows >= 5000 else 64,
    )
    search = SEARCH.format(drop=drop, unit=unit, blocks=15)
    metric = "accuracy  # or macro_f1, auroc, recall_at_precision, nll" if classify else "rmse  # or mae"
    return (
        f"# Run file for {path.name}. Start it with: orchestrator run FILE\n"
        f"# Seen in the data:\n{seen}\n"
        f"name: {json.dumps(name)}\nseed: 0\n\ndata:\n{data}\n\n"
        f"metric:\n  name: {metric}\n\n{body}\n{search}\n{VOTES if classify else MIXES}"
    )
