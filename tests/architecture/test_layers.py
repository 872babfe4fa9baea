"""Who may import whom (docs/architecture.md): data flows one way through the layers."""

from __future__ import annotations

import pytest

from tests.architecture.modules import imports, resolve_target, sources

# The first prefix that matches decides; the order is from the special to the general.
LAYERS: tuple[tuple[str, float], ...] = (
    ("orchestrator.errors", 0),
    ("orchestrator.config", 0),
    ("orchestrator.measure.bench_actor", 3),
    ("orchestrator.training.fit_actor", 3),
    ("orchestrator.training.ray_stream", 3),
    ("orchestrator.training.ray_train", 3),
    ("orchestrator.training.ray_worker", 3),
    ("orchestrator.mailbox", 3),
    ("orchestrator.search.ray_pool", 3),
    ("orchestrator.search.ray_search", 3),
    ("orchestrator.search.ray_tune", 3),
    ("orchestrator.cluster", 3),
    ("orchestrator.store", 1),
    ("orchestrator.data", 1),
    ("orchestrator.models", 1),
    ("orchestrator.measure", 1),
    ("orchestrator.runtime", 1),
    ("orchestrator.progress", 1),
    ("orchestrator.live", 1),
    ("orchestrator.load", 1),
    ("orchestrator.tracking", 1),
    ("orchestrator.training", 2.0),
    ("orchestrator.ensemble", 2.0),
    ("orchestrator.compression", 2.1),
    ("orchestrator.search", 2.2),
    ("deployments", 4),
    ("orchestrator.pipeline", 5),
    ("orchestrator.submit", 6),
    ("orchestrator.doctor", 6),
    ("orchestrator.cli", 6),
    ("orchestrator.command_bench", 6),
    ("orchestrator.command_choose", 6),
    ("orchestrator.command_explain", 6),
    ("orchestrator.command_guard", 6),
    ("orchestrator.command_models", 6),
    ("orchestrator.command_release", 6),
    ("orchestrator.command_serve", 6),
    ("orchestrator.command_submit", 6),
    ("orchestrator.command_sensitivity", 6),
    ("orchestrator.command_support", 6),
    ("orchestrator.support", 6),
    ("orchestrator.upload", 6),
    ("orchestrator.keys", 1),
    ("orchestrator.options", 6),
    ("orchestrator.__main__", 6),
    ("jobs", 6),
    ("benchmarks", 6),
    ("orchestrator", 0),
)
RAY_LAYERS = (3, 4, 5, 6)
ALLOWED_BY_LAYER_0 = {"pydantic", "yaml"}
KNOWN = sources()


def layer(module: str) -> float:
    return next(number for prefix, number in LAYERS if module == prefix or module.startswith(prefix + "."))


def folder(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "orchestrator" else parts[0]


@pytest.mark.parametrize("module", KNOWN)
def test_imports_only_lower_layers(module: str) -> None:
    mine = layer(module)
    for found in imports(KNOWN[module]):
        target = resolve_target(found.target, KNOWN)
        if target is None or target == "orchestrator":
            continue
        same_folder = folder(target) == folder(module)
        assert layer(target) < mine or same_folder or (layer(target) == mine and mine in (0, 1, 3, 6)), (
            f"{module}:{found.line} (layer {mine}) imports {target} (layer {layer(target)})"
        )


def test_deployments_stay_apart_from_training_and_search() -> None:
    for module in sources("deployments"):
        targets = {resolve_target(found.target, KNOWN) or "" for found in imports(KNOWN[module])}
        wrong = [
            t
            for t in targets
            if t.startswith(("orchestrator.training", "orchestrator.compression", "orchestrator.search"))
        ]
        assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", [name for name in KNOWN if layer(name) not in RAY_LAYERS])
def test_ray_only_at_the_rim(module: str) -> None:
    ray = [found for found in imports(KNOWN[module]) if found.target.split(".")[0] == "ray"]
    assert not ray, f"{module}:{ray[0].line} imports ray"


@pytest.mark.parametrize("module", [name for name in KNOWN if layer(name) == 0])
def test_settings_need_only_pydantic(module: str) -> None:
    import sys

    for found in imports(KNOWN[module]):
        top = found.target.split(".")[0]
        assert top in sys.stdlib_module_names | ALLOWED_BY_LAYER_0 | {"orchestrator"}, (
            f"{module}:{found.line} imports {top}"
        )


def test_nothing_imports_the_top_layer() -> None:
    for module, path in KNOWN.items():
        if layer(module) == 6:
            continue
        for found in imports(path):
            target = resolve_target(found.target, KNOWN)
            assert target is None or layer(target) < 6, f"{module}:{found.line} imports {target}"


def test_no_import_cycle() -> None:
    graph = {
        module: {
            target
            for found in imports(path)
            if not found.inside_function
            and (target := resolve_target(found.target, KNOWN)) not in (None, module)
        }
        for module, path in KNOWN.items()
    }
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, f"import cycle: {' -> '.join((*trail, module))}"
        state[module] = 1
        for target in sorted(graph[module] - {None}):
            visit(str(target), (*trail, module))
        state[module] = 2

    for module in graph:
        visit(module, ())


# Optional dependencies, and the command line's lazy imports (`orchestrator --help` answers at once).
# Where an import takes seconds that only some callers need.
LAZY = {
    "orchestrator.cli",
    "orchestrator.command_bench",
    "orchestrator.command_choose",
    "orchestrator.command_explain",
    "orchestrator.command_models",
    "orchestrator.command_release",
    "orchestrator.command_serve",
    "orchestrator.command_submit",
    "orchestrator.command_sensitivity",
    "orchestrator.command_support",
    "orchestrator.compression.export",
    "orchestrator.runtime.execute",
    "orchestrator.runtime.joint",
    "orchestrator.runtime.rebuild",
    "orchestrator.store.s3",
    "orchestrator.tracking.mlflow",
}


@pytest.mark.parametrize("module", [name for name in KNOWN if name not in LAZY])
def test_no_import_inside_functions(module: str) -> None:
    inside = [found for found in imports(KNOWN[module]) if found.inside_function]
    assert not inside, f"{module}:{inside[0].line} imports {inside[0].target} inside a function"
