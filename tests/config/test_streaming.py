"""What a streamed train part asks of the rest of the run file."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orchestrator.config.data import ParquetData, Stream
from tests.config.toys import DISTILLED, model, pair, refused, run, student

OTHERS = {part: f"{part}.parquet" for part in ("validation", "calibration", "contract", "test")}
DATA = {"kind": "parquet", "train": "train", "stream": True, "decode": "text", **OTHERS}
TEXT = "text_cnn"
MODELS = {"big": model(TEXT), "small": model(TEXT)}
REFIT = {"kind": "sequential", "policy": "stacking", "folds": 3, "members": ["big", "small"]}
CHAIN = {
    "kind": "sequential",
    "policy": "chain",
    "members": ["big", "small"],
    "later": [model("mlp")],
}


def with_data(**changed: Any) -> dict[str, Any]:
    return {"data": {**DATA, **changed}, "models": MODELS, "search": None}


def test_true_is_short_for_the_defaults_and_an_unstreamed_file_keeps_its_digest() -> None:
    data = run(**with_data()).data
    assert isinstance(data, ParquetData)
    assert data.stream == Stream()
    assert "stream" not in ParquetData(train="train.parquet").plain()
    assert run(**with_data(stream=False)).data == run(**with_data(stream=None)).data


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"decode": None}, "'stream' is for classes of text: set 'decode: text'"),
        ({"decode": "audio"}, "'stream' is for classes of text"),
        ({"task": "regression"}, "'stream' is for classes of text"),
        ({"contract": None, "test": None}, "no share is cut .*: name files for contract, test"),
        ({"limit": 100}, "'limit' and 'stream' exclude each other"),
        ({"stream": {"sample": 3}}, "data.stream.sample.*greater than or equal to 20"),
    ],
)
def test_data_that_cannot_be_streamed(changed: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, refused(**with_data(**changed)))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"s": student("big")}, "models.s.training.loss: a teacher's outputs are kept for every train row"),
        ({"s": model(TEXT, training={"sample": {"share": 0.5}})}, "models.s.training.sample: data.stream is"),
        (
            {"s": model(TEXT, training={"loss": {"kind": "cross_entropy", "class_weights": "balanced"}})},
            "models.s.training.loss.class_weights: the rows of data.stream are not held; list the factors",
        ),
    ],
)
def test_trainings_that_need_every_row_at_hand(models: dict[str, Any], sentence: str) -> None:
    given = with_data()
    assert sentence in refused(**{**given, "models": {**MODELS, **models}})


@pytest.mark.parametrize("tree", [REFIT, CHAIN, {"kind": "sequential", "policy": "boosting", "base": "big"}])
def test_ensembles_that_need_every_row_at_hand(tree: dict[str, Any]) -> None:
    assert "learns from outputs on every train row" in refused(**with_data(), ensembles={"x": tree})


def test_other_ensembles_and_a_teacher_within_a_step_are_free() -> None:
    recover = {"kind": "recover", "training": {"loss": DISTILLED}}
    variants = {"thin": {"parent": "big", "plan": [{"kind": "prune_channels", "amount": 0.5}, recover]}}
    ensembles = {"x": pair("big", "thin"), "y": {**REFIT, "folds": None}}
    assert run(**with_data(), variants=variants, ensembles=ensembles)


def test_a_transfer_set_is_held_as_a_whole() -> None:
    entry = model("mlp", training={"loss": DISTILLED, "transfer": DATA}, teacher="big")
    text = refused(models={"big": model("cnn"), "s": entry})
    assert "models.s.training.transfer: such rows are held as a whole; leave out their 'stream'" in text
