"""The user's own function as a source of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from orchestrator.config.data import CustomData
from orchestrator.config.imports import resolve
from orchestrator.data.dataset import Array, as_float32
from orchestrator.data.labels import from_flags
from orchestrator.data.source import DecodedSource, LabelSets
from orchestrator.errors import DataError, OrchestratorError

BLOCK_ROWS = 4096


class CustomSource(DecodedSource):
    """Rows that a function returned.

    The function is called at every load, and the cache is looked up by what it returned: nobody can
    tell from the outside whether it would return the same again.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, settings: CustomData, allowed: Collection[str]) -> None:
        """
        Raises:
            ModelError: the function is not allowed or not importable.
            DataError: it failed, or did not return arrays as it should.
        """
        self.name = settings.dataset
        function = resolve(settings.dataset, allowed)
        try:
            returned = function(**settings.kwargs)
            if isinstance(returned, tuple):
                returned = (*map(np.asarray, returned[:2]), *returned[2:])
        except OrchestratorError:
            raise
        except Exception as error:
            raise DataError(
                f"the dataset function failed ({type(error).__name__}: {error})", settings.dataset
            ) from error
        if not _is_data_set(returned):
            raise DataError(
                "the dataset function must return (inputs, targets) or (inputs, targets, classes)",
                settings.dataset,
            )
        inputs: Array = returned[0]
        self._targets: Array = returned[1]
        self.classes = tuple(str(name) for name in returned[2]) if len(returned) == 3 else ()
        self._inputs = self._checked(inputs)
        self.total = len(inputs)
        self.rows = min(self.total, settings.limit or self.total)

    def fingerprint(self) -> str:
        """Hex sha256 of the arrays."""
        digest = hashlib.sha256(repr((self._inputs.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self._inputs).data)
        if self._targets.dtype.kind in "OU":
            digest.update(repr(self._targets.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(self._targets).data)
        return digest.hexdigest()

    def labels(self) -> Array:
        """See `Source`."""
        targets = self._targets[: self.rows]
        if targets.dtype.kind in "OU" and targets.ndim == 1:
            missing = next((row for row, label in enumerate(targets) if _is_missing(label)), None)
            if missing is not None:
                what = f"row {missing} of {self.name} has no label"
                raise DataError(what, fix="fill or remove it (rows are counted from 0)")
            return np.asarray([str(label) for label in targets], dtype=object)
        if targets.dtype.kind not in "iu" or targets.ndim != 1:
            raise DataError(
                f"targets of {self.name} cannot be labels",
                f"{targets.dtype} {list(targets.shape)}",
                "return integers or text [N]",
            )
        return targets.astype(np.int64)

    def sets(self) -> LabelSets:
        """See `Source`."""
        targets = self._targets[: self.rows]
        if targets.dtype.kind not in "iub" or targets.ndim != 2:
            raise DataError(
                f"targets of {self.name} cannot be several labels a row",
                f"{targets.dtype} {list(targets.shape)}",
                "return integers 0 or 1 [N, K]",
            )
        return from_flags(targets.astype(np.int64), self.name)

    def values(self) -> Array:
        """See `Source`."""
        targets = self._targets[: self.rows]
        if targets.dtype.kind not in "iuf" or targets.ndim not in (1, 2):
            raise DataError(
                f"targets of {self.name} cannot be values",
                f"{targets.dtype} {list(targets.shape)}",
                "return numbers [N] or [N, T]",
            )
        return targets.reshape(self.rows, -1).astype(np.float64)

    def blocks(self) -> Iterator[Array]:
        """See `Source`."""
        for start in range(0, self.rows, BLOCK_ROWS):
            yield self._inputs[start : min(start + BLOCK_ROWS, self.rows)]

    def _checked(self, inputs: Array) -> Array:
        if len(inputs) != len(self._targets):
            raise DataError(
                f"{self.name} returned different numbers of inputs and targets",
                f"{len(inputs)} and {len(self._targets)}",
            )
        if inputs.dtype == np.uint8 and inputs.ndim == 4:
            return inputs
        if inputs.dtype.kind in "iuf" and inputs.ndim == 2:
            return as_float32(inputs)
        raise DataError(
            f"{self.name} returned inputs of an unsupported shape or type",
            f"{inputs.dtype} {list(inputs.shape)}",
            "return uint8 [N, C, H, W] or numbers [N, F]",
        )


def _is_data_set(returned: Any) -> bool:
    """Whether it is two arrays of rows, and names of classes if anything more."""
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        return False
    names = returned[2] if len(returned) == 3 else ()
    named = isinstance(names, Iterable) and not isinstance(names, str)
    return named and all(array.ndim > 0 for array in returned[:2])


def _is_missing(label: Any) -> bool:
    """None, NaN, and what pandas has in their place."""
    if isinstance(label, float | np.floating):
        return bool(np.isnan(label))
    return label is None or type(label).__name__ in ("NAType", "NaTType")


def transformer(path: str | None, allowed: Collection[str]) -> Any:
    """The function that `data.transform` names, wrapped in checks; the identity without one.

    Raises:
        ModelError: the function is not allowed or not importable.
    """
    if path is None:
        return lambda block: block
    function = resolve(path, allowed)

    def apply(block: Array) -> Array:
        try:
            changed = np.asarray(function(block))
        except OrchestratorError:
            raise
        except Exception as error:
            raise DataError(f"the transform failed ({type(error).__name__}: {error})", path) from error
        if changed.ndim < 2 or len(changed) != len(block):
            raise DataError(
                "the transform must keep the number of rows",
                f"{path} made {list(changed.shape)} of {list(block.shape)}",
            )
        if changed.dtype == np.uint8 and changed.ndim == 4:
            return changed
        if changed.dtype.kind in "iuf" and changed.ndim == 2:
            return as_float32(changed)
        raise DataError(
            "the transform must return uint8 [N, C, H, W] or numbers [N, F]",
            f"{path} returned {changed.dtype} {list(changed.shape)}",
        )

    return apply
