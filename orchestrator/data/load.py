"""From data settings to a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import PIL
import scipy
import tokenizers

from orchestrator.config.base import fingerprint
from orchestrator.config.data import (
    CustomData,
    DataSettings,
    EmbeddedData,
    FolderData,
    ParquetData,
    PartName,
)
from orchestrator.config.encoding import Encoding
from orchestrator.config.imports import code_digest
from orchestrator.data.build import build
from orchestrator.data.cache import SCHEMA, default_cache, get_or_build, open_cached
from orchestrator.data.custom import CustomSource, transformer
from orchestrator.data.dataset import Dataset
from orchestrator.data.folder import FolderSource
from orchestrator.data.images import Decoder
from orchestrator.data.parquet import open_alike
from orchestrator.data.source import Source
from orchestrator.data.streaming import open_streamed
from orchestrator.errors import DataError

__all__ = ["default_cache", "load", "load_alike", "open_cached"]

_SHIPPED: dict[str, dict[str, object]] = {
    "breast_cancer": {"decode": "features"},
    "gapminder": {
        "decode": "features",
        "features": ("continent", "year", "population", "gdp_per_capita"),
        "target": "life_expectancy",
    },
}
"""How embedded tables are read; images need nothing said."""
_OTHER_ROWS = "name other rows, or leave it out to have the part cut"


def load(
    settings: DataSettings,
    *,
    seed: int,
    cache: Path,
    allowed: Collection[str] = (),
    encoding: Encoding | None = None,
    labelled: bool = True,
) -> Dataset:
    """The data set, decoded at most once per node and then memory-mapped from `cache`.

    The cache is looked up by settings, seed and a digest of the source's content, and its rows are
    checked against their recorded digests. Several processes may call this at the same time.

    Args:
        settings: the run file's `data`.
        seed: decides the parts and the order of the rows in them.
        cache: folder of decoded data sets, see `default_cache`.
        allowed: import paths that may be called.
        encoding: another data set's, that raw values are to be encoded by in place of one fitted to them.
        labelled: False for rows whose labels are not looked at: all are 0, of one class.

    Raises:
        DataError: the data is missing, unreadable or not what `settings` say.
        DiskFullError: no space is left in `cache`.
        ModelError: `dataset` or `transform` is not allowed or cannot be imported.
    """
    if isinstance(settings, EmbeddedData):
        with as_file(files("orchestrator.data.embedded") / f"{settings.name}.parquet") as path:
            shipped = ParquetData.model_validate(
                {
                    "train": str(path),
                    "task": settings.task,
                    "shares": settings.shares,
                    "limit": settings.limit,
                    "small_classes": settings.small_classes,
                    **_SHIPPED.get(settings.name, {}),
                }
            )
            return _load(settings, _parquet(shipped), (), seed, cache, allowed, encoding, labelled)
    if isinstance(settings, ParquetData) and settings.stream is not None:
        train, streamed = open_streamed(settings, seed)
        return _load(settings, streamed, train.classes, seed, cache, allowed, encoding, labelled)
    if isinstance(settings, ParquetData):
        return _load(settings, _parquet(settings), settings.classes, seed, cache, allowed, encoding, labelled)
    if isinstance(settings, FolderData):
        return _load(settings, _folder(settings), (), seed, cache, allowed, encoding, labelled)
    source = CustomSource(settings, allowed)
    return _load(settings, {"train": source}, source.classes, seed, cache, allowed, encoding, labelled)


def load_alike(
    settings: DataSettings,
    own: DataSettings,
    dataset: Dataset,
    *,
    seed: int,
    cache: Path,
    allowed: Collection[str] = (),
    labelled: bool = True,
) -> Dataset:
    """Another data set's rows for models of this one: of the same columns, encoded as its own.

    Args:
        settings: of the other data set.
        own: of this one.
        dataset: that was loaded by them.
        seed: see `load`, as all that follow.
        cache: folder of decoded data sets.
        allowed: import paths that may be called.
        labelled: whether labels are looked at.

    Raises:
        DataError: see `load`; or the other file lacks a column of this one's.
    """
    encoding, columns = dataset.signature.encoding, tuple(dataset.facts.get("features", ()))
    # An encoding has names; plain numbers are told apart by their order alone, which is each file's own.
    if isinstance(settings, ParquetData) and settings.input is None and encoding is None and columns:
        renamed = settings.features and set(settings.features) != set(columns)
        if not renamed and settings.transform == own.transform:
            settings = settings.model_copy(update={"features": columns})
    return load(settings, seed=seed, cache=cache, allowed=allowed, encoding=encoding, labelled=labelled)


def _load(
    settings: EmbeddedData | ParquetData | FolderData | CustomData,
    sources: dict[PartName, Source],
    classes: tuple[str, ...],
    seed: int,
    cache: Path,
    allowed: Collection[str],
    encoding: Encoding | None,
    labelled: bool,
) -> Dataset:
    transform = transformer(settings.transform, allowed)
    prints = {name: source.fingerprint() for name, source in sources.items()}
    if isinstance(settings, ParquetData):
        _check_differ(prints, sources)
    facts: dict[str, object] = {
        "schema": SCHEMA,
        "settings": settings.plain(),
        "seed": seed,
        "sources": prints,
        "transform": code_digest(settings.transform) if settings.transform else None,
        "pillow": PIL.__version__,
    }
    train = sources["train"]
    if encoding is not None and train.decode is None and not (encoding.kind == "table" and train.columns):
        encoding = None
    if encoding is not None:
        facts["encoding"] = encoding.plain()
    if not labelled:
        facts["labelled"] = False
        settings = settings.model_copy(update={"task": "classification"})  # of the one class that is told
    if train.decode is not None:
        facts["made_by"] = [tokenizers.__version__, scipy.__version__]
    key = fingerprint(facts)
    write: Callable[[Path], dict[str, object]] = partial(
        build,
        sources=sources,
        settings=settings,
        seed=seed,
        classes=classes,
        transform=transform,
        encoding=encoding,
        labelled=labelled,
    )
    return get_or_build(cache, key[:32], write)


def _check_differ(prints: Mapping[PartName, str], sources: Mapping[PartName, Source]) -> None:
    """Figures on rows that decided the model are worth nothing."""
    first: dict[str, PartName] = {}
    for name, found in prints.items():
        other = first.setdefault(found, name)
        if other != name:
            raise DataError(f"data.{name} holds the rows of data.{other}", sources[name].name, _OTHER_ROWS)


def _parquet(settings: ParquetData) -> dict[PartName, Source]:
    return {**open_alike(settings, Decoder(settings.image))}


def _folder(settings: FolderData) -> dict[PartName, Source]:
    decoder = Decoder(settings.image)
    root = Path(settings.root).expanduser().absolute()
    test = None if settings.test is None else root.parent / settings.test
    if test is not None and test.resolve() == root.resolve():
        raise DataError("data.test is the folder of data.root", settings.test, _OTHER_ROWS)
    sources: dict[PartName, Source] = {"train": FolderSource(root, settings, decoder)}
    if test is not None:
        sources["test"] = FolderSource(test, settings, decoder)
    return sources
