"""Factories outside the built-ins: allowed by name or never imported, and checked when they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from orchestrator.config.model import ImportedModel, ModelSettings
from orchestrator.errors import ModelError
from orchestrator.models.build import build
from tests.models.toys import DIGITS, ROWS, rows, signature

TOYS = "tests.models.toys"


def imported(name: str, **kwargs: object) -> ImportedModel:
    return ImportedModel(factory=f"{TOYS}:{name}", kwargs=kwargs)


def test_an_allowed_factory_builds_a_scaled_model_by_seed() -> None:
    allowed = (f"{TOYS}:flat",)
    first, again = (
        build(imported("flat", width=8), signature(DIGITS), allowed=allowed, seed=2) for _ in range(2)
    )
    assert first.training
    assert first(rows(DIGITS, 3)).shape == (3, 10)
    assert torch.equal(first.get_parameter("body.1.weight"), again.get_parameter("body.1.weight"))


def test_an_imported_regression_answers_in_raw_units() -> None:
    model = build(
        imported("flat"),
        signature(ROWS, task="regression", outputs=2),
        allowed=(f"{TOYS}:flat",),
        seed=0,
    )
    torch.nn.init.zeros_(model.get_parameter("body.3.weight"))
    torch.nn.init.zeros_(model.get_parameter("body.3.bias"))
    assert torch.equal(model(rows(ROWS, 1)), torch.tensor([[100.0, 200.0]]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", r"factory failed \(RuntimeError: no such backbone"),
        ("no_module", r"must return a torch.nn.Module; it returned int"),
        ("wrong_width", r"must return floating point \[2, 10\]; it returned torch.float32 \[2, 11\]"),
        ("returns_tuple", r"must return floating point \[2, 10\]; it returned tuple"),
        ("fails_forward", r"fails on two rows of shape \[1, 8, 8\] \(RuntimeError"),
    ],
)
def test_a_factory_that_breaks_the_contract_is_refused_by_name(name: str, message: str) -> None:
    path = f"{TOYS}:{name}"
    with pytest.raises(ModelError, match=message) as caught:
        build(imported(name), signature(DIGITS), allowed=(path,))
    assert path in str(caught.value)


def test_unknown_kwargs_are_refused() -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'depht'"):
        build(imported("flat", depht=3), signature(DIGITS), allowed=(f"{TOYS}:flat",))


def test_a_hostile_manifest_cannot_name_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as they stand in a manifest from elsewhere: nothing is imported, nothing is called."""
    ran = tmp_path / "ran"
    (tmp_path / "hostile_module.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef make(*args): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter: TypeAdapter[ModelSettings] = TypeAdapter(ModelSettings)
    settings = adapter.validate_json('{"factory": "hostile_module:make", "kwargs": {}}')
    for allowed in ((), ("hostile_module:other",), (f"{TOYS}:flat",)):
        with pytest.raises(ModelError, match="not allowed: hostile_module:make"):
            build(settings, signature(DIGITS), allowed=allowed)
    assert "hostile_module" not in sys.modules
    assert not ran.exists()


def test_a_system_command_as_factory_is_refused_without_being_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("the command ran"))
    with pytest.raises(ModelError, match="not allowed: os:system"):
        build(ImportedModel(factory="os:system", kwargs={"command": "true"}), signature(DIGITS))


@pytest.mark.parametrize("path", ["os", "os.system", "../x:y", "a:b:c", "a b:c", "a:b()", ":x", "x:"])
def test_a_factory_that_is_no_import_path_is_no_setting(path: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|no built-in has this name"):
        ImportedModel(factory=path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:make", "cannot import no_such_module_here"),
        (f"{TOYS}:absent", "no callable absent"),
    ],
)
def test_a_missing_factory_is_one_sentence(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(ImportedModel(factory=path), signature(DIGITS), allowed=(path,))
