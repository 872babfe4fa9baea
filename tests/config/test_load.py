"""Files, overrides, the JSON Schema, and canonical JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.config.base import Settings, canonical, fingerprint
from orchestrator.config.load import (
    explained,
    json_schema,
    load_run,
    override,
    parse_yaml,
    read_yaml,
    validate,
)
from orchestrator.config.release import Canary, Labels, Reweight
from orchestrator.config.run import RunConfig
from orchestrator.config.serving import AppSettings
from orchestrator.config.training import Training
from orchestrator.errors import ConfigError
from tests.config.toys import refused, run, values


def write(path: Path, **changed: Any) -> Path:
    path.write_text(yaml.safe_dump(values(**changed)), encoding="utf-8")
    return path


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml")
    found = load_run(path, ["seed=5", "search.trials=3", "models.small.training.lr=1e-2", "serving=null"])
    assert (found.seed, found.serving) == (5, None)
    assert found.search is not None
    assert found.search.trials == 3
    assert found.models["small"].training.lr == 0.01
    assert load_run(path).seed == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the run file"),
        (b"\xff\xfe", "cannot read the run file"),
        (b"a: [1", "not valid YAML"),
        (b"a: 2024-02-30", "not valid YAML"),
        (b"seed: 1\nmodels:\n  t: {}\n  t: {}\n", "line 4: the key 't' stands in line 3 already"),
        (b"{seed: 1, 'seed': 2}", "line 1: the key 'seed' stands in line 1 already"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"", "must be a mapping"),
    ],
)
def test_files_that_are_no_run_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as found:
        read_yaml(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_overrides_leave_the_original() -> None:
    before = {"a": {"b": [1, {"c": 2}]}}
    after = override(before, ["a.b=[3]", "x.y.z=true", "a.d=e=f"])
    assert after == {"a": {"b": [3], "d": "e=f"}, "x": {"y": {"z": True}}}
    assert before == {"a": {"b": [1, {"c": 2}]}}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seed", "must look like a.b=c"),
        ("=3", "must look like a.b=c"),
        ("search..trials=3", "must look like a.b=c"),
        ("name.first=x", "leads through a value that has no keys"),
        ("seed=[1", "not valid YAML"),
        ("seed=2024-02-30", "not valid YAML"),
    ],
)
def test_overrides_that_make_no_sense(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        override(values(), [assignment])
    assert assignment in str(found.value)


def test_overrides_pass_the_same_validation() -> None:
    assert "search.trails. did you mean 'trials'" in refused("search.trails=3")
    assert "models.small.training.epochs" in refused("models.small.training.epochs=0")


def test_plain_values_and_back() -> None:
    ensembles = {"x": {"kind": "sequential", "stages": ["fastest", "small"]}}
    found = run(ensembles=ensembles)
    assert RunConfig.model_validate(json.loads(json.dumps(found.plain()))) == found


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        run().seed = 3  # type: ignore[misc]


def test_json_schema_describes_the_file() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert {"name", "data", "models"} <= set(schema["required"])
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert "latency" in schema["$defs"]["SearchSettings"]["properties"]
    assert schema["$defs"]["Training"]["properties"]["lr"]["description"] == "The schedule's peak."


def test_canonical_json_is_one_form() -> None:
    assert canonical({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_have_no_fingerprint(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": [number]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(number)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_settings_hold_no_such_numbers(number: str) -> None:
    plain = parse_yaml(f"lr: {number}", "x.yaml")
    with pytest.raises(ConfigError, match="lr: Input should be a finite number"):
        validate(Training, plain, "x.yaml")


def test_objects_have_no_fingerprint() -> None:
    with pytest.raises(TypeError):
        fingerprint({"a": {1, 2}})


def test_yaml_runs_no_code() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.getcwd []", "x.yaml")


@pytest.mark.parametrize(
    ("cls", "given", "said"),
    [
        (Reweight, {}, "the body: give either 'weights' or 'thresholds'"),
        (Reweight, {"weight": [1]}, "unknown key in the body: weight. did you mean 'weights'."),
        (Labels, {"labels": {"a": "x"}}, "the body: labels.a: Input should be a valid integer"),
        (Canary, {"release": "x" * 5000}, "(got '" + "x" * 199 + ")"),
        (
            AppSettings,
            {"store": "/s", "refs": "a"},
            "the body: refs: Input should be a valid tuple (got 'a')",
        ),
    ],
)
def test_any_settings_class_is_explained_alike(cls: type[Settings], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        validate(cls, given, "the body")
    assert said in str(found.value)
    assert len(str(found.value)) < 400


def test_text_that_is_no_json_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as found:
        Reweight.model_validate_json("{secret")
    told = str(explained(found.value, Reweight, "the body"))
    assert told.startswith("the body: Invalid JSON")
    assert "secret" not in told


def test_keys_of_a_merged_mapping_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\nd: {<<: [*a, *b], y: 4}\ne: *b"
    assert parse_yaml(text, "text") == {
        "a": {"x": 1, "y": 1},
        "b": {"x": 2, "y": 1},
        "c": {"x": 3, "y": 1},
        "d": {"x": 1, "y": 4},
        "e": {"x": 2, "y": 1},
    }


def test_a_bare_off_is_off() -> None:
    found = run("serving.request_log=off").serving
    assert found is not None
    assert found.request_log == "off"
