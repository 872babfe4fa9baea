"""Which servers the benchmark compares, and what is sent to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.serving_servers import SWITCHES

OURS, DISTRIBUTED, BARE = "ours", "ours, distributed", "bare upload"
COMPOSITION = "composition"
FASTAPI = "fastapi"
BATCHED = ("--form", "compiled", "--batched")


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


TRIO = "trio"
ONE, MANY, EIGHT = Case(TRIO, 1), Case(TRIO, 16), Case(TRIO, 16, rows=8)
JSON = Case(TRIO, 16, binary=False)
BULK_ROWS = 1024
BULK = Case("bulk", 2, rows=BULK_ROWS)


@dataclass(frozen=True)
class Arm:
    """One server and what is sent to it."""

    command: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    variables: Mapping[str, str] | None = None
    compiled: bool = False
    """A baseline with our compiled graph and a batcher of its own."""

    @property
    def models(self) -> tuple[str, ...]:
        """That it is asked for, in the order of the cases."""
        return tuple(dict.fromkeys(case.model for case in self.cases))

    def sent(self, *cases: Case) -> Arm:
        """The same server under other load."""
        return replace(self, cases=cases)


def ours(store: str, placement: str, refs: Sequence[str], cases: Sequence[Case] = ()) -> Arm:
    """`orchestrator serve` of these refs."""
    options = ("--store", store, "--placement", placement, "--port", "{port}")
    return Arm(("-m", "orchestrator", "serve", *refs, *options), tuple(cases))


def baselines(folder: Path) -> dict[str, Arm]:
    """All servers that one would write by hand, by name.

    Args:
        folder: of their models.
    """

    def ray(shape: str, *options: str, switches: bool = False, compiled: bool = False) -> Arm:
        module = ("-m", "benchmarks.serving_baselines.ray_server", shape, str(folder), *options)
        return Arm((*module, "--port", "{port}"), variables=SWITCHES if switches else None, compiled=compiled)

    def fastapi(*options: str, compiled: bool = False) -> Arm:
        module = ("-m", "benchmarks.serving_baselines.fastapi_app", str(folder), *options)
        return Arm((*module, "--port", "{port}"), compiled=compiled)

    tuned = ("--tuned",)
    return {
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
        BARE: Arm(("-m", "benchmarks.serving_baselines.bare_app", "--port", "{port}")),
    }
