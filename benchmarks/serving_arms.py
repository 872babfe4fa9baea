"""Which servers the benchmark compares, and what is sent to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_servers import SWITCHES

OURS, DISTRIBUTED, BARE = "ours", "ours, distributed", "bare upload"
COMPOSITION = "composition"
FASTAPI = "fastapi"
SERVED = ("trio", "trio-bf16", "tiny-2", "tiny-8", "bulk")
BATCHED = ("--form", "compiled", "--batched")


@dataclass(frozen=True)
class Arm:
    """One server."""

    command: tuple[str, ...]
    models: tuple[str, ...] = ("trio",)
    variables: Mapping[str, str] | None = None
    compiled: bool = False
    """A baseline with our compiled graph and a batcher of its own."""


def ours(store: str, placement: str, refs: Sequence[str], models: tuple[str, ...]) -> Arm:
    """`orchestrator serve` of these refs, whose specs have these names."""
    options = ("--store", store, "--placement", placement, "--port", "{port}")
    return Arm(("-m", "orchestrator", "serve", *refs, *options), models)


def arms(folder: Path, store: str, *, compiled: bool) -> dict[str, Arm]:
    """All servers by name.

    Args:
        folder: of the baselines' models.
        store: of ours.
        compiled: with the baselines that run our compiled graph.
    """

    def ray(shape: str, *options: str, switches: bool = False, compiled: bool = False) -> Arm:
        module = ("-m", "benchmarks.serving_baselines.ray_server", shape, str(folder), *options)
        return Arm((*module, "--port", "{port}"), variables=SWITCHES if switches else None, compiled=compiled)

    def fastapi(*options: str, compiled: bool = False) -> Arm:
        module = ("-m", "benchmarks.serving_baselines.fastapi_app", str(folder), *options)
        return Arm((*module, "--port", "{port}"), compiled=compiled)

    tuned = ("--tuned",)
    found = {
        COMPOSITION: ray("composition"),
        "composition, compiled": ray("composition", *BATCHED, *tuned, compiled=True),
        "composition, switches": ray("composition", *tuned, switches=True),
        "composition, switches, compiled": ray("composition", *BATCHED, *tuned, switches=True, compiled=True),
        "replica, switches": ray("replica", *tuned, switches=True),
        "replica, switches, compiled, unbatched": ray(
            "replica", "--form", "compiled", *tuned, switches=True, compiled=True
        ),
        "replica, switches, compiled": ray("replica", *BATCHED, *tuned, switches=True, compiled=True),
        FASTAPI: fastapi(),
        "fastapi, compiled": fastapi(*BATCHED, compiled=True),
        BARE: Arm(("-m", "benchmarks.serving_baselines.bare_app", "--port", "{port}"), ("bulk",)),
        OURS: ours(store, "fused", [f"serving/{name}" for name in SERVED], SERVED),
        DISTRIBUTED: ours(store, "distributed", ["serving/trio"], ("trio",)),
    }
    return {name: arm for name, arm in found.items() if compiled or not arm.compiled}


@dataclass(frozen=True)
class Case:
    """What is sent: `rows` of a model by so many connections."""

    model: str
    connections: int
    rows: int = 1
    binary: bool = True

    @property
    def name(self) -> str:
        """Readable key."""
        body = "binary" if self.binary else "json"
        return f"{self.model} x{self.rows} {body} c{self.connections}"


BULK_CONNECTIONS = 2


def cases(model: str) -> tuple[Case, ...]:
    """What is sent to a model."""
    if model == "bulk":
        return (Case("bulk", BULK_CONNECTIONS, rows=1024),)
    if model.startswith("tiny"):
        return (Case(model, 1),)
    return Case(model, 1), Case(model, 16), Case(model, 16, rows=8), Case(model, 16, binary=False)
