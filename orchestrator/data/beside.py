"""A data set whose rows are made of those of another one: the same targets and ids, other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.data import PARTS, PartName
from orchestrator.data.build import dataset_digest, moments, part_digest, read_parts
from orchestrator.data.cache import get_or_build
from orchestrator.data.dataset import Array, Dataset


def with_inputs(base: Dataset, inputs: Mapping[PartName, Array], *, key: str, cache: Path) -> Dataset:
    """The data set with other inputs, feature rows `float32` [N, F]; from the cache, or written there.

    Args:
        base: whose targets and ids, in its order.
        inputs: by part; parts that are not given have no rows.
        key: names all that decides the inputs.
        cache: folder of decoded data sets.

    Raises:
        DiskFullError: no space is left in `cache`.
        DataError: the cache folder cannot be written.
    """
    width = next(iter(inputs.values())).shape[1]

    def build(folder: Path) -> dict[str, Any]:
        for name in PARTS:
            part, rows = base.part(name), inputs.get(name)
            kept = slice(0, 0 if rows is None else len(part))
            shown = (
                np.empty((0, width), np.float32) if rows is None else np.ascontiguousarray(rows, np.float32)
            )
            np.save(folder / f"{name}.inputs.npy", shown)
            np.save(folder / f"{name}.targets.npy", np.asarray(part.targets[kept]))
            np.save(folder / f"{name}.ids.npy", np.asarray(part.ids[kept]))
        parts = read_parts(folder)
        mean, std = moments(parts["train"].inputs)
        scaled = {"mean": mean, "std": std, "encoding": None}
        signature = base.signature.model_copy(
            update={"input_shape": (width,), "input_dtype": "float32", **scaled}
        )
        digests = {name: part_digest(part) for name, part in parts.items()}
        facts = {
            **base.facts,
            "rows": {name: len(part) for name, part in parts.items()},
            "row_digests": digests,
        }
        return {
            "digest": dataset_digest(signature, digests),
            "signature": signature.plain(),
            "facts": facts,
        }

    return get_or_build(cache, key[:32], build)
