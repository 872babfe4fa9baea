"""Several labels a row over HTTP, without Ray and without artifacts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.exchange import Answer
from deployments.releases.learner import learner_of
from deployments.releases.trial import agreement
from orchestrator.config.ensemble import Cascade, Parallel, Spec
from orchestrator.config.release import FeedbackSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble.tree import distinct, predict
from tests.deployments.served import DEEP, LABELS, SMALL, WIDE, application, linear

SIGNATURE, NAMES = LABELS.signature, LABELS.signature.classes
CASCADE = Spec(
    name="short",
    tree=Cascade(stages=(SMALL, Parallel(members=(WIDE, DEEP))), thresholds=(0.6,)),
    signature=SIGNATURE,
)
ROWS = np.random.default_rng(5).normal(size=(20, 4)).astype(np.float32)


def post(path: str, body: Any, spec: Spec = LABELS) -> httpx.Response:
    app = application(ServingSettings(), [spec])

    async def test() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            if body is None:
                return await http.get(path)
            return await http.post(
                path, content=json.dumps(body), headers={"Content-Type": "application/json"}
            )

    return asyncio.run(asyncio.wait_for(test(), 20))


def expected(spec: Spec) -> np.ndarray:
    calls = {member: linear(seed, SIGNATURE) for seed, member in enumerate(distinct(spec.tree))}

    def run(member: Any) -> Any:
        async def answer(rows: np.ndarray) -> Any:
            return await calls[member](rows)

        return lambda rows: asyncio.run(answer(rows))

    found = predict(spec.tree, {member: run(member) for member in calls}, ROWS, "multilabel").probs
    assert found is not None
    return found


@pytest.mark.parametrize("spec", [LABELS, CASCADE], ids=["mix", "cascade"])
def test_the_protocol_gives_a_probability_for_each_label_and_those_that_are_there(spec: Spec) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [20, 4], "data": ROWS.ravel().tolist()}
    got = post(f"/v2/models/{spec.name}/infer", {"inputs": [tensor]}, spec)
    assert got.status_code == 200, got.text
    outputs = {one["name"]: one for one in got.json()["outputs"]}
    assert list(outputs) == ["probabilities", "labels"]
    assert (outputs["labels"]["datatype"], outputs["labels"]["shape"]) == ("BOOL", [20, 3])
    probs = np.array(outputs["probabilities"]["data"]).reshape(20, 3)
    np.testing.assert_allclose(probs, expected(spec), atol=1e-6)
    np.testing.assert_array_equal(np.array(outputs["labels"]["data"]).reshape(20, 3), probs > 0.5)


def test_members_are_told_on_request() -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [20, 4], "data": ROWS.ravel().tolist()}
    wanted = [{"name": name} for name in ("labels", "member_probs", "member_weights", "disagreement")]
    got = post("/v2/models/tags/infer", {"inputs": [tensor], "outputs": wanted}).json()["outputs"]
    labels, probs, weights, against = (np.array(one["data"]).reshape(one["shape"]) for one in got)
    np.testing.assert_allclose((probs * weights[..., None]).sum(axis=1), expected(LABELS), atol=1e-6)
    differs = ((probs > 0.5) != labels[:, None]).any(axis=2)
    np.testing.assert_allclose(against, (weights * differs).sum(axis=1), atol=1e-6)
    assert 0 < against.mean() < 1


@pytest.mark.parametrize("threshold", [None, 0.0, 0.3, 1.0])
def test_predict_names_the_labels_above_the_threshold(threshold: float | None) -> None:
    query = "" if threshold is None else f"?threshold={threshold}"
    got = post(f"/predict{query}", ROWS.tolist()).json()
    assert got["classes"] == list(NAMES)
    least = 0.5 if threshold is None else threshold
    for row in got["predictions"]:
        there = [name for name, chance in zip(NAMES, row["probabilities"], strict=True) if chance > least]
        assert row["labels"] == there
        assert sorted(row) == ["labels", "probabilities"]


@pytest.mark.parametrize("threshold", ["", "x", "nan", "1.5", "-0.1"])
def test_a_threshold_that_is_no_probability_is_refused(threshold: str) -> None:
    got = post(f"/predict?threshold={threshold}", ROWS.tolist())
    assert got.status_code == 400
    assert "threshold must be a number from 0 to 1" in got.text


def test_models_of_one_class_a_row_take_no_threshold() -> None:
    one = LABELS.model_copy(update={"signature": SIGNATURE.model_copy(update={"task": "classification"})})
    got = post("/predict?threshold=0.3", ROWS.tolist(), one)
    assert got.status_code == 400
    assert "only a model of several labels" in got.text


def test_what_the_page_is_told() -> None:
    (found,) = post("/status", None).json()["models"]
    assert (found["task"], found["classes"]) == ("multilabel", list(NAMES))
    assert "labels" in found["outputs"]


def test_two_releases_agree_on_a_row_where_all_of_its_labels_are_the_same() -> None:
    def answer(labels: Any) -> Answer:
        return Answer({"labels": np.array(labels)}, (), 0, degraded=False)

    one = answer([[True, False], [True, True], [False, False]])
    other = answer([[True, False], [True, False], [False, False]])
    assert agreement(one, one) == 1
    assert agreement(one, other) == pytest.approx(2 / 3)


def test_weights_are_not_learned_from_labels_that_come_later() -> None:
    one = LABELS.model_copy(update={"signature": SIGNATURE.model_copy(update={"task": "classification"})})
    assert learner_of(one, FeedbackSettings()) is not None
    assert learner_of(LABELS, FeedbackSettings()) is None
