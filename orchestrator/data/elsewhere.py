"""Rows from elsewhere, to see whether an ensemble notices: files that no class fits, and made-up images."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from orchestrator.config.data import DataSettings, ParquetData
from orchestrator.config.signature import Signature
from orchestrator.data.custom import transformer
from orchestrator.data.dataset import Array
from orchestrator.data.images import Decoder
from orchestrator.data.parquet import ParquetInputs, ParquetSource, read_schema
from orchestrator.data.source import check_finite
from orchestrator.errors import DataError


def rows_from_elsewhere(
    settings: DataSettings, signature: Signature, allowed: Collection[str] = ()
) -> dict[str, Array]:
    """The rows of `data.elsewhere` by name, decoded and encoded as the data's own; labels are not read.

    Args:
        settings: of the data.
        signature: of the data set, with the encoding that was fitted to it.
        allowed: import paths that may be called.

    Raises:
        DataError: a file is missing or damaged, or its rows are not of the data's form.
    """
    if not isinstance(settings, ParquetData):
        return {}
    targets = (settings.target,) if isinstance(settings.target, str) else settings.target
    root = Path(settings.root).expanduser().absolute()
    transform = transformer(settings.transform, allowed)
    decoder = Decoder(settings.image)
    # What was found in the train file is read by name: other files may have it in another order.
    features, usual = settings.features, settings.input
    if settings.elsewhere and not (features or usual) and settings.stream is None:
        found_in_train = ParquetSource(root / settings.train, settings, decoder)
        features, usual = found_in_train.features, found_in_train.input
    found = {}
    for name, file in settings.elsewhere.items():
        # Files of other origin may call their one column of images or text otherwise.
        has_it = usual in read_schema(root / file)[0].names
        inputs = ParquetInputs(
            root / file,
            decoder,
            wanted=usual if has_it else settings.input,
            features=features,
            others=targets,
            decode=settings.decode,
        )
        blocks = list(inputs.encoded(signature.encoding))
        if not blocks:
            raise DataError("the file has no rows", inputs.name)
        rows = np.concatenate(blocks)
        rows = rows if signature.encoding is not None else transform(rows)
        if rows.shape[1:] != signature.input_shape or rows.dtype.name != signature.input_dtype:
            raise DataError(
                f"rows of data.elsewhere.{name} are not of the data's form",
                f"{rows.dtype} {list(rows.shape[1:])}",
                f"give {signature.input_dtype} {list(signature.input_shape)}",
            )
        check_finite(rows, 0, inputs.name, inputs.columns)
        found[name] = rows
    return found


def images_from_elsewhere(images: Array, seed: int) -> dict[str, Array]:
    """Made-up images of the same number and shape, by name.

    `uniform_noise`: every value drawn anew from 0 to 255. `shuffled_pixels`: each image's own pixels in a
    random order, so that its colours stay and its shapes go.

    Args:
        images: `uint8` [N, C, H, W].
        seed: Of everything drawn.
    """
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, size=images.shape, dtype=np.uint8)
    pixels = images.reshape(*images.shape[:2], -1)
    order = random.random((len(images), 1, pixels.shape[2])).argsort(axis=2)
    return {
        "uniform_noise": noise,
        "shuffled_pixels": np.take_along_axis(pixels, order, axis=2).reshape(images.shape),
    }
