"""What a run is told of its limits before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.config.load import validate
from orchestrator.config.model import Mlp
from orchestrator.config.run import RunConfig
from orchestrator.data.load import load
from orchestrator.errors import ConfigError, NotFoundError
from orchestrator.models.base import weights_of
from orchestrator.models.build import build
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.limits import check_ensembles, check_named, check_search, check_training_search
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store


def run_of(tmp_path: Path, told: list[str], **sections: Any) -> Run:
    values = {"name": "mine", "data": {"kind": "embedded", "limit": 300}, "serving": None, **sections}
    config = validate(
        RunConfig, {"models": {"teacher": {"model": {"factory": "mlp"}}}, **values}, "mine.yaml"
    )
    dataset = load(config.data, seed=0, cache=tmp_path / "cache")
    return cast(
        Run,
        SimpleNamespace(
            config=config,
            dataset=dataset,
            allowed=frozenset(),
            store=Store(tmp_path / "store"),
            progress=lambda *event: told.append(event[1]),
        ),
    )


def test_a_promise_that_few_rows_cannot_show_is_told_with_the_rows_that_could(tmp_path: Path) -> None:
    told: list[str] = []
    check_search(run_of(tmp_path, told, search={"promise": {"max_drop": 0.05}}))
    (sentence,) = told
    assert "of a variant that answers as its parent does, accuracy drops by 0.0000 on 24 rows" in sentence
    assert "at most 0.1013, which is more than the allowed 0.05; about 52 rows would be needed" in sentence
    told.clear()
    check_search(run_of(tmp_path, told, search={"promise": {"max_drop": 0.11}}))
    check_search(run_of(tmp_path, told))
    assert told == []


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_rows_that_may_change_are_bounded_under_any_metric(tmp_path: Path, metric: str) -> None:
    def check(share: float) -> None:
        promise = {"max_drop": 0.5, "max_changed": share}
        check_search(run_of(tmp_path, [], search={"promise": promise}, metric={"name": metric}))

    with pytest.raises(ConfigError, match=r"max_changed: on 24 contract rows.*is 0\.1013: 0\.1\."):
        check(0.1)
    check(0.11)


def test_a_coverage_that_the_calibration_rows_cannot_show_is_refused_at_the_start(tmp_path: Path) -> None:
    def check(coverage: float) -> None:
        models = {name: {"model": {"factory": "mlp"}} for name in ("teacher", "other")}
        tree = {"kind": "parallel", "members": [*models], "prediction_sets": {"coverage": coverage}}
        check_ensembles(run_of(tmp_path, [], models=models, ensembles={"both": tree}))

    check(0.5)
    with pytest.raises(ConfigError, match=r"ensembles\.both: too few calibration rows.*at least 999"):
        check(0.999)


def test_a_search_over_trainings_is_held_to_its_smallest_model(tmp_path: Path) -> None:
    space = {"model": {"kwargs": {"widths": {"choice": [[16], [8]]}}}}
    said = r"no variant can keep training_search\.max_bytes.* take 2,368 bytes: 2,000"
    with pytest.raises(ConfigError, match=said):
        check_training_search(run_of(tmp_path, [], training_search={"space": space, "max_bytes": 2000}))
    check_training_search(run_of(tmp_path, [], training_search={"space": space, "max_bytes": 2400}))


def test_a_parent_whose_file_leaves_zeros_out_is_not_held_to_its_shapes(tmp_path: Path) -> None:
    def check(teacher: dict[str, Any]) -> None:
        search = {"space": {"plan": [{"kind": "bf16"}]}, "max_bytes": 4000}
        check_search(run_of(tmp_path, [], models={"teacher": teacher}, search=search))

    model = Mlp()
    plain = {"model": model.plain()}
    with pytest.raises(ConfigError, match=r"no variant can keep search\.max_bytes"):
        check(plain)
    check({**plain, "training": {"sparsify": {"amount": 0.9}}})

    store, signature = Store(tmp_path / "store"), run_of(tmp_path, []).dataset.signature
    module = build(model, signature, seed=0)
    for name, times in (("dense", 1.0), ("sparse", 0.0)):
        for weight in weights_of(module).values():
            weight.data[1:] *= times
        draft = Draft(model=model, signature=signature, data="", seed=0)
        store.set_ref(f"other/{name}", store.put_artifact(draft, tensors_of(module)))
    with pytest.raises(ConfigError, match=r"no variant can keep search\.max_bytes"):
        check({"ref": "other/dense"})
    check({"ref": "other/sparse"})


@pytest.mark.parametrize(
    ("sections", "error", "said"),
    [
        ({"variants": {"thin": "thick"}}, NotFoundError, "thick"),
        (
            {"variants": {"one": "two", "two": "teacher"}},
            ConfigError,
            "variants.one: .* not made before it: two",
        ),
        ({"variants": {"thin": "mix"}}, None, ""),
        ({"variants": {"thin": "teacher"}, "search": "thin"}, None, ""),
        ({"search": "thick"}, NotFoundError, "thick"),
        ({"search": "mine/later"}, None, ""),
        ({"search": "mix"}, ConfigError, "search: a step takes what is not made before it: mix"),
        (
            {"variants": {"thin": "mix"}, "search": "thin"},
            ConfigError,
            "search: .*: thin. known there: teacher",
        ),
    ],
)
def test_names_of_nothing_are_told_before_training(
    tmp_path: Path, sections: dict[str, Any], error: type[Exception] | None, said: str
) -> None:
    def plan(other: str) -> list[dict[str, Any]]:
        taught = {"ensemble": other} if other == "mix" else {"others": [other]}
        return [{"kind": "distill", "model": {"factory": "mlp"}, **taught}]

    variants = {
        name: {"parent": "teacher", "plan": plan(other)}
        for name, other in sections.get("variants", {}).items()
    }
    mix = {"kind": "parallel", "members": ["teacher", "other"]}
    models = {name: {"model": {"factory": "mlp"}} for name in ("teacher", "other")}
    space = {"space": {"plan": plan(sections["search"])}} if "search" in sections else None
    run = run_of(tmp_path, [], models=models, variants=variants, ensembles={"mix": mix}, search=space)
    if error is None:
        check_named(run)
    else:
        with pytest.raises(error, match=said):
            check_named(run)
