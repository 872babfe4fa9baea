"""Rules of the house that are cheap to check: sizes, errors, run files, embedded copies."""

from __future__ import annotations

import ast
import filecmp
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.config.load import load_run
from orchestrator.errors import OrchestratorError
from tests.architecture.modules import ROOT, sources, tree_of

LARGEST_FILE = 400
LARGEST_FUNCTION = 60
MOST_REQUIRED = 8
RUN_FILES = sorted(
    path for path in (ROOT / "examples").rglob("*.yaml") if "seed:" in path.read_text(encoding="utf-8")
)
ERRORS = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, OrchestratorError) and found.__module__ == errors.__name__
]


@pytest.mark.parametrize(("module", "path"), sources().items())
def test_files_and_functions_stay_small(module: str, path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LARGEST_FILE, f"{module} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LARGEST_FUNCTION, f"{module}.{node.name} has {length} lines"
            arguments = node.args
            count = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
            count += sum(default is None for default in arguments.kw_defaults)
            count -= any(argument.arg in ("self", "cls") for argument in arguments.args)
            assert count <= MOST_REQUIRED, f"{module}.{node.name} needs {count} arguments"


@pytest.mark.parametrize("error", ERRORS, ids=lambda found: found.__name__)
def test_errors_survive_pickling(error: type[OrchestratorError]) -> None:
    made = error("weights must sum to 1", 1.3, "normalize them")
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is error
    assert str(again) == str(made) == "weights must sum to 1: 1.3. normalize them."
    assert (again.what, again.value, again.fix) == ("weights must sum to 1", "1.3", "normalize them")
    assert made.exit_code in (1, 2)


def test_run_files_are_found() -> None:
    assert {path.name for path in RUN_FILES} >= {"digits.yaml", "cifar10.yaml"}


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_every_shipped_run_file_parses(path: Path) -> None:
    assert load_run(path).name


def test_embedded_run_file_is_the_example() -> None:
    embedded = ROOT / "orchestrator" / "pipeline" / "digits.yaml"
    assert filecmp.cmp(embedded, ROOT / "examples" / "digits.yaml", shallow=False)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("orchestrator.cli", "torch ray numpy pyarrow optuna plotly pydantic"),
        # A replica of a float model: torch's compiler is two seconds of its start otherwise.
        (
            "deployments.member, orchestrator.runtime.execute",
            "torch._inductor torchao openvino ray.tune optuna",
        ),
    ],
    ids=["help", "replica"],
)
def test_a_start_imports_nothing_heavy(modules: str, heavy: str) -> None:
    code = f"import sys, {modules}; found = set('{heavy}'.split()) & set(sys.modules); print(*found)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stdout + done.stderr
