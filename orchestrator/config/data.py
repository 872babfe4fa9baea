"""Where rows come from and how they are cut into the five parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.decode import Decode, TextDecode
from orchestrator.config.imports import ImportPath
from orchestrator.config.signature import Task

PartName = Literal["train", "validation", "calibration", "contract", "test"]
PARTS: tuple[PartName, ...] = ("train", "validation", "calibration", "contract", "test")


class Shares(Settings):
    """Shares of the training rows; with no test file, `test` is cut first and the rest is shared."""

    train: float = Field(0.75, gt=0, lt=1)
    validation: float = Field(0.10, gt=0, lt=1)
    calibration: float = Field(0.05, gt=0, lt=1)
    contract: float = Field(0.10, gt=0, lt=1)
    test: float = Field(0.20, gt=0, lt=1)
    """Share of all rows that becomes the test part when no test file is named."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Shares:
        total = self.train + self.validation + self.calibration + self.contract
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train, validation, calibration and contract must sum to 1, got {total:.4g}")
        return self


class DataBase(Settings):
    """What all data sources share."""

    task: Task = "classification"
    shares: Shares = Shares()
    small_classes: Literal["refuse", "spread"] | None = Field(None, exclude_if=absent)
    """What to do about a class with fewer rows than there are parts: refuse the data (the default), or spread
    its rows: the first to train, the next to test, validation, contract and calibration."""
    limit: int | None = Field(None, ge=20)
    """Use only the first rows of each file: for quick trials."""
    transform: ImportPath | None = None
    """`fn(inputs: np.ndarray) -> np.ndarray`, applied once to the decoded rows before they are cached.

    It is called with some rows at a time, so each row must be treated by itself.
    """


class EmbeddedData(DataBase):
    """A data set inside the package: `digits`, 1,797 images of 1x8x8; `breast_cancer`, 569 rows of 30 numbers
    with two classes; `gapminder`, 1,704 rows of three numbers and a category with life expectancies."""

    kind: Literal["embedded"] = "embedded"
    name: Literal["digits", "breast_cancer", "gapminder"] = "digits"

    @model_validator(mode="after")
    def _own_task(self) -> EmbeddedData:
        own: Task = "regression" if self.name == "gapminder" else "classification"
        if self.task != own:
            raise ValueError(f"'{self.name}' is a table for {own}: set 'task: {own}'")
        if self.transform is not None and self.name != "digits":
            raise ValueError("clients send raw columns, which a 'transform' would not see: leave it out")
        return self


class Image(Settings):
    """How encoded images are decoded."""

    mode: Literal["L", "RGB"] | None = None
    """Gray or colour; taken from the first image when not given."""
    size: tuple[int, int] | None = None
    """Height and width to resize to; without it all images must have one size."""


class Stream(Settings):
    """A train part of many files: read anew in each epoch, and never held as a whole."""

    sample: int = Field(10_000, ge=20)
    """Rows, drawn by the seed from all files, that stand for the train part wherever it is held: encodings
    are fitted to them, and compression steps learn from them. The first row of each class is among them."""
    shuffle: int = Field(10_000, ge=1)
    """Rows that a worker holds to mix their order."""
    readers: int = Field(1, ge=1)
    """Tasks that read ahead of each worker, on its node."""


def _spelled_out(value: Any) -> Any:
    return {} if value is True else None if value is False else value


class ParquetData(DataBase):
    """Parquet files: encoded images, sound, text, tensors, or columns of numbers and categories."""

    kind: Literal["parquet"] = "parquet"
    root: str = "."
    """Folder that the file names below are relative to (`--data` sets it)."""
    train: str
    """A file; with `stream` it may be a folder of files, or a pattern (`train/*.parquet`)."""
    stream: Annotated[
        Stream | None, BeforeValidator(_spelled_out, json_schema_input_type=Stream | bool | None)
    ] = Field(None, exclude_if=absent)
    """Read the train part anew in each epoch, for files larger than the memory; `true` for the defaults."""
    validation: str | None = None
    calibration: str | None = None
    contract: str | None = None
    test: str | None = None
    cut_from: Literal["train", "validation"] | None = Field(None, exclude_if=absent)
    """Which file calibration and contract are cut from that have none of their own: the train file (the
    default), or the validation file, so that all train rows train."""
    input: str | None = None
    """Column of images, sound, text or tensors; found from the schema when neither this nor `features` is
    given."""
    features: tuple[str, ...] = ()
    """Columns that form a feature row: numbers, and text as categories."""
    decode: Decode | None = Field(None, exclude_if=absent)
    """What the input holds; found from the schema when not given."""
    elsewhere: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Files by name whose rows no class fits: only for evaluation, their labels are not read."""
    target: str | tuple[str, ...] = "label"
    """Label column (`multilabel`: of lists), or the target columns of a regression."""
    classes: tuple[str, ...] = ()
    """Names of classes, or of labels, in their order; needed only for names other than the labels
    themselves."""
    image: Image = Image()

    @model_validator(mode="after")
    def _one_input(self) -> ParquetData:
        if self.input and self.features:
            raise ValueError("give either 'input' (one column) or 'features' (numeric columns), not both")
        if len(set(self.features)) < len(self.features):
            raise ValueError("'features' name a column twice")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("'classes' hold a name twice")
        if self.cut_from == "validation" and self.validation is None:
            raise ValueError("cut_from: validation needs a validation file: name it, or leave 'cut_from' out")
        if self.task != "regression" and not isinstance(self.target, str):
            raise ValueError(f"{self.task} has one target column; for several targets set task: regression")
        kind = None if self.decode is None else self.decode.kind
        if self.features and kind not in (None, "features"):
            raise ValueError(f"'features' are decoded as features, not as {kind}: name one column by 'input'")
        if self.transform is not None and kind in ("text", "audio", "features"):
            raise ValueError(f"clients send raw {kind}, which a 'transform' would not see: leave it out")
        if self.elsewhere and self.task != "classification":
            raise ValueError(f"elsewhere: not for task {self.task}; leave it out")
        return self

    @model_validator(mode="after")
    def _streamed(self) -> ParquetData:
        if self.stream is None:
            return self
        if self.task != "classification" or not isinstance(self.decode, TextDecode):
            raise ValueError("'stream' is for classes of text: set 'decode: text', or leave 'stream' out")
        lacking = ", ".join(part for part in PARTS[1:] if getattr(self, part) is None)
        if lacking:
            raise ValueError(f"no share is cut from a train part with 'stream': name files for {lacking}")
        if self.limit is not None:
            raise ValueError("'limit' and 'stream' exclude each other: name fewer files")
        return self


class FolderData(DataBase):
    """Image folders `class/name.png`."""

    kind: Literal["folder"] = "folder"
    root: str
    """Folder with one sub-folder a class (`--data` sets it)."""
    test: str | None = None
    """A second folder of the same shape, relative to `root`'s parent unless absolute."""
    image: Image = Image()

    @model_validator(mode="after")
    def _classes_only(self) -> FolderData:
        if self.task != "classification":
            raise ValueError(
                f"a folder gives each image one class: for task {self.task} use parquet or custom"
            )
        return self


class CustomData(DataBase):
    """Rows from the user's own function."""

    kind: Literal["custom"] = "custom"
    dataset: ImportPath
    """`fn(**kwargs) -> (inputs, targets)` or `(inputs, targets, classes)` as numpy arrays: inputs uint8
    [N, C, H, W] or float32 [N, F], targets integer labels [N], 0 or 1 [N, K] for `multilabel`, or float [N]
    / [N, T]."""
    kwargs: dict[str, Any] = Field(default_factory=dict)


DataSettings = Annotated[EmbeddedData | ParquetData | FolderData | CustomData, Field(discriminator="kind")]
