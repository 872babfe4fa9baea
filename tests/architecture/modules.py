"""The project's modules and what each imports, read from their syntax trees."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "deployments", "jobs", "benchmarks")


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    target: str
    line: int
    inside_function: bool


def sources(*packages: str) -> dict[str, Path]:
    """Module name -> file of all modules in the packages."""
    found = {}
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def tree_of(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> list[Import]:
    """All imports of a file; those under `if TYPE_CHECKING` too."""
    tree = tree_of(path)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names the module; resolve_target decides which it is.
            found += [
                Import(f"{node.module}.{alias.name}", node.lineno, id(node) in inside) for alias in node.names
            ]
    return found


def resolve_target(target: str, known: dict[str, Path]) -> str | None:
    """The project module that an import target lies in, or None for other libraries."""
    while target:
        if target in known:
            return target
        target = target.rpartition(".")[0]
    return None
