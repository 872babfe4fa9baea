"""The occlusion map finds the pixels that a made-up decision looks at."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.ensemble.occlusion import occlusion_map
from orchestrator.errors import DataError


def looks_at(row: int, column: int) -> npt.NDArray[np.uint8]:
    """A black image [2, 6, 6] with one white pixel."""
    image = np.zeros((2, 6, 6), dtype=np.uint8)
    image[:, row, column] = 255
    return image


def brightness_of(row: int, column: int) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]:
    """Two classes; the second one's probability is the brightness of a pixel."""

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        bright = images[:, 0, row, column] / 255
        return np.stack([1 - bright, bright], axis=1)

    return predict


def test_hiding_the_pixel_that_decides_takes_the_probability() -> None:
    found = occlusion_map(brightness_of(3, 4), looks_at(3, 4), 1, patch=2, stride=1)
    mean = round(255 / 36) / 255
    expected = np.zeros((5, 5))
    expected[2:4, 3:5] = 1 - mean
    assert found.probability == 1.0
    assert found.drop == pytest.approx(expected)
    assert json.loads(json.dumps(found.plain()))["drop"][2][3] == pytest.approx(1 - mean)


def test_the_other_class_gains_what_this_one_loses() -> None:
    found = occlusion_map(brightness_of(0, 0), looks_at(0, 0), 0, patch=3, stride=3)
    assert found.drop.shape == (2, 2)
    assert found.probability == 0.0
    assert found.drop == pytest.approx(np.array([[round(255 / 36) / 255 - 1, 0], [0, 0]]))


def test_each_channel_is_hidden_with_its_own_mean_and_the_image_stays_as_it_was() -> None:
    image = np.zeros((2, 4, 4), dtype=np.uint8)
    image[0], image[1] = 40, 200
    seen: list[npt.NDArray[np.uint8]] = []

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        seen.append(images.copy())
        return np.ones((len(images), 1))

    found = occlusion_map(predict, image, 0, patch=2, stride=2)
    assert (seen[0] == image).all()
    assert (found.drop == 0).all()
    assert len(seen[0]) == 5


@pytest.mark.parametrize(("patch", "stride"), [(7, 1), (0, 1), (2, 0)])
def test_a_square_that_does_not_fit_is_refused(patch: int, stride: int) -> None:
    with pytest.raises(DataError, match="does not fit into the image"):
        occlusion_map(brightness_of(0, 0), looks_at(0, 0), 0, patch=patch, stride=stride)
