"""Chains through the pipeline: later models learn from answers to rows that these were not trained on.

The models are trained in this process, by the code that Ray's workers run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.exchange import Question
from deployments.placement import Here
from orchestrator.compression.ensembles import as_other
from orchestrator.config.ensemble import Chain, Member, Spec, leaves
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.data.load import default_cache, load, open_cached
from orchestrator.data.split import fold_of, rows_digest
from orchestrator.ensemble.sight import beside, told
from orchestrator.ensemble.tree import distinct, predict, replay
from orchestrator.errors import CompressionError, ConfigError
from orchestrator.pipeline import chaining, folding, training
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.elsewhere import noticed, out_of_scope
from orchestrator.pipeline.ensembling import fit_ensemble
from orchestrator.pipeline.explaining import explained
from orchestrator.progress import Progress
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob

HERE = "tests.pipeline.test_chaining"
FOLDS = 2


def xor() -> tuple[NDArray[Any], NDArray[Any]]:
    """The class is the side on which x lies, exchanged where y is positive."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(240, 6)).astype(np.float32)
    return rows, ((rows[:, 0] > 0) ^ (rows[:, 1] > 0)).astype(np.int64)


def config(**chain: Any) -> RunConfig:
    recipe = {"epochs": 12, "batch_size": 32, "optimizer": "adamw", "lr": 0.03}
    later = {"model": {"factory": "mlp", "kwargs": {"widths": [16]}}, "training": recipe}
    values = {
        "name": "xor",
        "data": {"kind": "custom", "dataset": f"{HERE}:xor"},
        "models": {
            name: {"model": {"factory": "mlp", "kwargs": {"widths": [width]}}, "training": recipe}
            for name, width in (("big", 16), ("small", 4))
        },
        "ensembles": {
            "chain": {
                "kind": "sequential",
                "policy": "chain",
                "members": ["big", "small"],
                "later": [later, later],
                "folds": FOLDS,
                "quorum": 1,
                **chain,
            }
        },
        "latency": {"blocks": 5, "block_ms": 1},
        "serving": None,
    }
    return validate(RunConfig, values, "xor.yaml")


def in_this_process(
    run: Run, jobs: Sequence[TrainJob], *, fresh: bool = False, **_: object
) -> dict[str, str]:
    del fresh
    return {
        job.name: run.store.stage(job.key(), partial(fit, job, run.store, lambda _: None)) for job in jobs
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Spec, dict[str, Member]]]:
    folder = tmp_path_factory.mktemp("chaining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        patch.setattr(folding, "trained", in_this_process)
        patch.setattr(training, "trained", in_this_process)
        run = open_run(config(), store=str(folder / "store"), progress=Progress(), cluster=lambda: None)
        known = {name: Member(name=name, digest=digest) for name, digest in training.train(run).items()}
        spec, _ = fit_ensemble(run, "chain", known)
        yield run, spec, known


def test_later_models_stand_behind_those_that_they_see(made: tuple[Run, Spec, dict[str, Member]]) -> None:
    run, spec, _ = made
    assert isinstance(spec.tree, Chain)
    assert [member.name for member in leaves(spec.tree)][:2] == ["big", "small"]
    first, second = spec.tree.members[2:]
    assert isinstance(first, Member)
    assert isinstance(second, Member)
    assert [one.name for one in first.sees] == ["big", "small"]
    assert [one.name for one in second.sees] == ["big", "small", "chain-1"]
    assert run.store.ref("xor/chain-1") == first.digest
    manifest = run.store.manifest(second.digest)
    assert manifest.parents == tuple(one.digest for one in second.sees)
    assert manifest.signature.input_shape == (6 + 3 * 2,)
    assert run.store.spec(run.store.ref("xor/chain")) == spec


def test_a_train_row_holds_no_answer_of_a_model_that_was_trained_on_it(
    made: tuple[Run, Spec, dict[str, Member]],
) -> None:
    """Looked up by fold: the rows that the author of each answer was trained on are in its manifest."""
    run, spec, known = made
    assert isinstance(spec.tree, Chain)
    part = run.dataset.part("train")
    fold = fold_of(len(part), FOLDS)
    rows = _rows_of(run, spec, 2)
    said = rows.part("train").inputs[:, 6:].reshape(len(part), 2, 2)
    np.testing.assert_array_equal(rows.part("train").inputs[:, :6], part.inputs)
    np.testing.assert_array_equal(rows.part("train").targets, part.targets)
    for place, name in enumerate(known):
        for number, job in enumerate(folding._jobs(run, name, FOLDS)):
            digest = run.store.stage_result(job.key())
            assert digest is not None
            assert run.store.manifest(digest).what["rows"] == rows_digest(part.ids[fold != number])
            own = told([run.outputs(Member(name="fold", digest=digest), "train")], "classification")
            np.testing.assert_array_equal(said[fold == number, place], own[fold == number])
        whole = told([run.outputs(known[name], "train")], "classification")
        assert not np.allclose(said[:, place], whole)
    # The first later model's answers to train rows are out of fold, too; other rows hold the members' own.
    later = _rows_of(run, spec, 3)
    assert later.part("train").inputs.shape[1] == 6 + 3 * 2
    said_alone = [
        run.outputs(member, "validation") for member in spec.tree.members[:3] if isinstance(member, Member)
    ]
    shown = told(said_alone, "classification")
    validation = run.dataset.part("validation")
    np.testing.assert_array_equal(later.part("validation").inputs, beside(validation.inputs, shown))


def _rows_of(run: Run, spec: Spec, place: int) -> Any:
    """The data that a later model was trained on, found by its digest among the data sets of the cache."""
    assert isinstance(spec.tree, Chain)
    member = spec.tree.members[place]
    assert isinstance(member, Member)
    wanted = run.store.manifest(member.digest).data
    folders = [meta.parent for meta in run.dataset.folder.parent.glob("*/meta.json")]
    (found,) = [one for one in map(open_cached, folders) if one.digest == wanted]
    return found


def test_a_second_fit_trains_nothing(
    made: tuple[Run, Spec, dict[str, Member]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, spec, known = made

    def nobody(*_: Any, **__: Any) -> dict[str, str]:
        raise AssertionError("trained again")

    monkeypatch.setattr(folding, "trained", nobody)
    assert fit_ensemble(run, "chain", known)[0] == spec


def test_the_walk_over_models_is_the_walk_over_kept_outputs(
    made: tuple[Run, Spec, dict[str, Member]],
) -> None:
    run, spec, _ = made
    rows = run.dataset.part("test").inputs
    kept = replay(spec.tree, {one: run.outputs(one, "test") for one in distinct(spec.tree)}, "classification")
    found = predict(
        spec.tree, {one: run.executable(one) for one in distinct(spec.tree)}, rows, "classification"
    )
    np.testing.assert_allclose(found.outputs, kept.outputs, atol=1e-5)
    right = (found.outputs.argmax(axis=1) == run.dataset.part("test").targets).mean()
    assert right > 0.65
    told_why = explained(run, spec, "test", 0)
    assert [one["name"] for one in told_why["said"]["members"]] == ["big", "small", "chain-1", "chain-2"]


@pytest.mark.parametrize("placement", ["fused", "mixed"])
def test_served_answers_are_those_in_process(
    made: tuple[Run, Spec, dict[str, Member]], placement: str
) -> None:
    """Without a quorum one walk serves many requests; with one each request has its own, with deadlines."""
    run, spec, _ = made
    assert isinstance(spec.tree, Chain)
    if placement == "fused":
        spec = spec.model_copy(update={"tree": spec.tree.model_copy(update={"quorum": None})})
    serving = ServingSettings(placement="fused", compile=False)
    engine = Here(AppSettings(store=str(run.store.root), specs=(spec,), serving=serving), {}).open(spec)
    rows = run.dataset.part("test").inputs[:12]
    parts = [rows[:1], rows[1:4], rows[4:]]

    async def ask() -> list[Any]:
        await engine.ready()
        found = await asyncio.gather(
            *(engine.predict(Question(part, 20.0, frozenset({"member_probs"}))) for part in parts)
        )
        await engine.close()
        return found

    members = {one: run.executable(one) for one in distinct(spec.tree)}
    for answer, part in zip(asyncio.run(ask()), parts, strict=True):
        expected = predict(spec.tree, members, part, "classification")
        assert expected.probs is not None
        np.testing.assert_allclose(answer.outputs["probabilities"], expected.probs, atol=1e-5)
        assert answer.members == ("big", "small", "chain-1", "chain-2")
        assert answer.outputs["member_probs"].shape == (len(part), 4, 2)
        assert not answer.degraded


def test_what_it_notices_and_whom_it_cannot_teach(made: tuple[Run, Spec, dict[str, Member]]) -> None:
    run, spec, _ = made
    assert noticed(run, {"chain": spec.tree}) == {"chain": {}}
    with pytest.raises(CompressionError, match="a chain is no teacher"):
        as_other(spec, lambda *_: None)  # type: ignore[arg-type]


def test_a_later_model_sees_what_others_say_of_rows_from_elsewhere(
    made: tuple[Run, Spec, dict[str, Member]],
) -> None:
    run, spec, _ = made
    own = run.config.data
    # Labels of rows from elsewhere are not looked at, so that their parts are cut without them.
    plain = load(own, seed=run.config.seed, cache=default_cache(), allowed=run.allowed, labelled=False)
    config = run.config.model_copy(update={"elsewhere": own})
    run = replace(run, dataset=plain, config=config)
    members = distinct(spec.tree)
    found = out_of_scope(run, members)
    for member in members:  # the same rows, so the same answers
        np.testing.assert_allclose(found[member], run.outputs(member, "validation"), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"members": ["big", {"kind": "parallel", "members": ["big", "small"]}]},
            "member 'parallel' must be",
        ),
        ({"later": []}, "at least 1 item"),
        ({"later": [{"model": {"factory": "cnn"}}]}, "a later model sees rows of numbers"),
        ({"folds": 1}, "greater than or equal to 2"),
    ],
)
def test_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**changed)


def test_the_rows_are_written_once(made: tuple[Run, Spec, dict[str, Member]]) -> None:
    run, spec, known = made
    before = _rows_of(run, spec, 2).folder.stat().st_mtime_ns
    bound = run.config.ensembles["chain"].model_copy(update={"members": tuple(known.values())})
    assert isinstance(bound, Chain)
    again = chaining.train_later(run, "chain", bound)
    assert [one.digest for one in distinct(again)] == [one.digest for one in distinct(spec.tree)]
    assert _rows_of(run, spec, 2).folder.stat().st_mtime_ns == before
