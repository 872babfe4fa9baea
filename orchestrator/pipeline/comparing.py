"""Then and now: whether a figure that was measured again falls in the recorded interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.measure.intervals import Interval
from orchestrator.measure.latency import Latency
from orchestrator.measure.machine import machine

TABLE_WIDTH = 150
"""When the output is no terminal."""
TOLERANCE = 0.05
"""How far two medians of one call on one machine may lie apart; the recorded interval knows nothing of what
changes between two runs."""

NOISY = 10.0
"""A new interval whose ends differ by more than this many tolerances tells nothing."""

Status = Literal["holds", "near", "explained", "fails", "unclear", "unknown"]
"""`near`: outside of the interval by no more than the noise between two measurements. `explained`: it
differs, and a named difference says why. `unclear`: the new measurement is too noisy to tell. `unknown`:
nothing was recorded."""


@dataclass(frozen=True)
class Figure:
    """A number, with its interval where it has one."""

    value: float
    ci: Interval | None = None
    digits: int = 4

    def __str__(self) -> str:
        own = f"{self.value:.{self.digits}f}"
        if self.ci is None:
            return own
        return f"{own} ({self.ci[0]:.{self.digits}f} to {self.ci[1]:.{self.digits}f})"

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"value": self.value, "ci": None if self.ci is None else list(self.ci)}


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    name: str
    then: Figure | str | None
    now: Figure | str | None
    status: Status
    reason: str
    decides: bool = True
    """Whether its failure means that the variant does not reproduce."""

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        sides = {"then": self.then, "now": self.now}
        shown = {side: found.plain() if isinstance(found, Figure) else found for side, found in sides.items()}
        return {**asdict(self), **shown}


@dataclass(frozen=True)
class Difference:
    """What is not as it was when the figures were recorded."""

    what: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.then} then, {self.now} now"


@dataclass(frozen=True)
class Reproduction:
    """One artifact, made again and compared."""

    variant: str
    """As it was asked for."""
    digest: str
    parent: str | None
    """That the plan was applied to; None for a training."""
    plan: tuple[str, ...]
    """Kinds of the steps on the parent."""
    differences: tuple[Difference, ...]
    checks: tuple[Check, ...]

    @property
    def reproduces(self) -> bool:
        """Whether all that decides came out as recorded, or otherwise for a reason that is named."""
        return self.verdict == "it reproduces"

    @property
    def verdict(self) -> str:
        """For people."""
        found = {check.status for check in self.checks if check.decides}
        if "fails" in found:
            return "it does not reproduce"
        if "unclear" in found:
            return "it cannot be told: the machine is not quiet enough, try again"
        return "it reproduces"

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "variant": self.variant,
            "digest": self.digest,
            "parent": self.parent,
            "plan": list(self.plan),
            "differences": [asdict(difference) for difference in self.differences],
            "checks": [check.plain() for check in self.checks],
            "reproduces": self.reproduces,
            "verdict": self.verdict,
        }


def show(found: Reproduction) -> None:
    """For people: what differs between then and now, then a row a check."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    on = f" on {found.parent[:12]}" if found.parent else ""
    say(f"{found.variant} is {found.digest[:12]}: {' > '.join(found.plan) or 'trained'}{on}")
    for difference in found.differences:
        say(f"differs: {difference}")
    table = Table(box=None, pad_edge=False)
    for column in ("", "then", "now", "", ""):
        table.add_column(column, overflow="fold")
    for check in found.checks:
        cells = (check.name, _side(check.then), _side(check.now), check.status, check.reason)
        table.add_row(*map(escape, cells))
    console.print(table)
    say(found.verdict)


def _side(value: Figure | str | None) -> str:
    return value[:12] if isinstance(value, str) else "" if value is None else str(value)


def differences(
    made: Mapping[str, Any], here: Mapping[str, Any], machines: Iterable[Mapping[str, Any]]
) -> list[Difference]:
    """What explains that a figure comes out otherwise: versions, instruction set, threads, device, machine.

    Args:
        made: `threads`, `torch`, `isa` and `device` that the artifact was made with.
        here: the same of this process.
        machines: facts of the machines (`measure.machine.machine`) that figures were recorded on.
    """
    now = machine()
    found = [_difference(key, made.get(key), here.get(key)) for key in ("torch", "isa", "threads", "device")]
    threads = made.get("threads")
    if isinstance(threads, int) and threads > now["cores"]:
        found.append(Difference("cores", f"{threads} threads", f"{threads} on {now['cores']} cores"))
    for then in machines:
        versions = then.get("versions", {})
        found += [_difference(name, versions.get(name), now["versions"].get(name)) for name in versions]
        keys = ("isa", "cpu", "cores", "governor", "system")
        found += [_difference(_SPOKEN.get(key, key), then.get(key), now.get(key)) for key in keys]
    return list(dict.fromkeys(difference for difference in found if difference is not None))


_SPOKEN = {"isa": "instructions of the processor", "cpu": "processor"}


def _difference(what: str, then: Any, now: Any) -> Difference | None:
    if then is None or then == now:
        return None
    name = "instruction set" if what == "isa" else what
    return Difference(name, _text(then), _text(now))


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def quality_check(name: str, then: Figure | None, now: Figure) -> Check:
    """Whether a metric on the same rows falls in the interval that was recorded."""
    if then is None or then.ci is None:
        return Check(name, then, now, "unknown", "nothing was recorded")
    if _inside(now.value, then.ci):
        return Check(name, then, now, "holds", "in the recorded interval")
    return Check(name, then, now, "fails", "outside of the recorded interval")


def latency_checks(
    label: str, record: Mapping[str, Any], now: Latency, parent: Latency, tolerance: float
) -> list[Check]:
    """The latency and the speed over the parent's, each against its recorded interval.

    A latency that lies outside is explained where the speed over the parent, measured in turns with it, is as
    recorded: then the machine as a whole is faster or slower than it was.

    Args:
        label: execution, batch and threads, for people.
        record: as the store keeps it.
        now: measured again.
        parent: of the record's baseline, measured in turns with it.
        tolerance: largest relative distance of two medians that counts as noise.
    """
    then = Figure(record["median_ms"], _interval(record["ci"]), 3)
    then_ratio = Figure(record["ratio"], _interval(record["ratio_ci"]), 2)
    ratio = _closeness(
        f"times its parent's speed ({label})",
        then_ratio,
        Figure(now.ratio, now.ratio_ci, 2),
        tolerance,
        decides=False,
    )
    own = _closeness(f"latency in ms ({label})", then, Figure(now.median_ms, now.ci, 3), tolerance)
    if own.status in ("fails", "unclear") and ratio.status in ("holds", "near"):
        before = then.value * then_ratio.value
        times = parent.median_ms / before
        pace = f"{times:.2f} times slower" if times > 1 else f"{1 / times:.2f} times faster"
        said = f"the whole machine is {pace}: its parent took {before:.3f} ms, now {parent.median_ms:.3f}"
        own = Check(own.name, own.then, own.now, "explained", said)
    elif own.status == "fails" and ratio.status == "unclear":
        # Whether the whole machine was slower can then not be told either.
        own = Check(own.name, own.then, own.now, "unclear", ratio.reason)
    return [own, ratio]


def _closeness(name: str, then: Figure, now: Figure, tolerance: float, *, decides: bool = True) -> Check:
    assert then.ci is not None
    assert now.ci is not None
    if _inside(now.value, then.ci):
        return Check(name, then, now, "holds", "in the recorded interval", decides)
    if now.ci[1] > now.ci[0] * (1 + NOISY * max(tolerance, TOLERANCE)):
        said = f"too noisy to tell: {now.ci[1] / now.ci[0]:.1f} times from end to end"
        return Check(name, then, now, "unclear", said, decides)
    if now.ci[0] <= then.ci[1] and then.ci[0] <= now.ci[1]:
        return Check(name, then, now, "near", "the intervals overlap", decides)
    apart = max(now.value / then.value, then.value / now.value) - 1
    if apart <= tolerance:
        said = f"{apart:.1%} from what was recorded, within the noise of {tolerance:.0%}"
        return Check(name, then, now, "near", said, decides)
    return Check(name, then, now, "fails", "outside of the recorded interval", decides)


def _inside(value: float, interval: Interval) -> bool:
    # A float that went through JSON is the same float; nothing to allow for.
    return interval[0] <= value <= interval[1]


def _interval(values: Iterable[float]) -> Interval:
    low, high = values
    return low, high
