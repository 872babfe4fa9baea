"""Wrong keys and values are named as the user wrote them, with the nearest valid one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.toys import model, refused


@pytest.mark.parametrize(
    ("changed", "key", "near"),
    [
        ({"metrics": {"name": "nll"}}, "metrics", "metric"),
        ({"data": {"kind": "embedded", "limt": 50}}, "data.limt", "limit"),
        ({"data": {"kind": "parquet", "train": "a", "rot": "b"}}, "data.rot", "root"),
        ({"models": {"a": {"modle": {}}}}, "models.a.modle", "model"),
        ({"models": {"a": model(training={"epoch": 3})}}, "models.a.training.epoch", "epochs"),
        ({"search": {"parent": "big", "space": {"plam": []}}}, "search.space.plam", "plan"),
        (
            {"ensembles": {"x": {"kind": "parallel", "member": ["big", "small"]}}},
            "ensembles.x.member",
            "members",
        ),
        ({"serving": {"prot": 1}}, "serving.prot", "port"),
    ],
)
def test_unknown_key(changed: dict[str, Any], key: str, near: str) -> None:
    text = refused(**changed)
    assert f": {key}. did you mean '{near}'." in text
    assert "unknown key in toy.yaml" in text


def test_a_model_may_be_called_like_a_factory() -> None:
    wrong = {"factory": "resnet", "kwargs": {"dept": 8}}
    text = refused(models={"resnet": {"model": wrong}}, search=None)
    assert ": models.resnet.model.kwargs.dept. did you mean 'depth'." in text


def test_without_a_near_key_all_are_listed() -> None:
    text = refused(latency={"zzz": 1})
    assert "latency.zzz. valid keys here: batch, block_ms, blocks, most_blocks, threads, tolerance." in text


def test_nested_members_have_their_index() -> None:
    inner = {"kind": "parallel", "members": ["big", "small"], "wieghts": [1]}
    text = refused(ensembles={"x": {"kind": "weighted_mix", "members": ["big", inner]}})
    assert "ensembles.x.members.1.wieghts. did you mean 'weights'." in text


def test_an_unknown_key_is_told_before_other_problems() -> None:
    text = refused(seed="many", models={}, nmae="x")
    assert "(2 more): nmae. did you mean 'name'." in text


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"name": "a b"}, ("name:", "got 'a b'")),
        ({"seed": "many"}, ("seed:", "integer", "got 'many'")),
        ({"metric": {"name": "acuracy"}}, ("metric.name:", "got 'acuracy'", "did you mean 'accuracy'")),
        ({"data": {"kind": "embeded"}}, ("data:", "'embeded'", "'embedded', 'parquet', 'folder', 'custom'")),
        ({"data": {"kind": "parquet"}}, ("data.train:", "required")),
        ({"models": {"a": model("resnt")}}, ("models.a.model.factory:", "mlp, cnn, resnet", "got 'resnt'")),
        ({"models": {"a": model("my.module:")}}, ("models.a.model.factory:", "got 'my.module:'")),
        ({"serving": {"port": 70000}}, ("serving.port:", "65535", "got 70000")),
        ({"models": {}}, ("models:", "at least 1")),
    ],
)
def test_wrong_value(changed: dict[str, Any], parts: tuple[str, ...]) -> None:
    text = refused(**changed)
    for part in parts:
        assert part in text
    assert "literal[" not in text
