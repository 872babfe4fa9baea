"""What clients see while members fail: answers in time, degraded ones, and wrong ones that do not say so.

Three members with a quorum of two, each with two replicas of its own, or (`fused`) two processes that hold
them all, under open-loop Poisson load without retries. Phases: no faults; a fault inside a member (exception,
NaN, wrong shape, slow, hung call) every two seconds; a process killed (kill -9) or stopped for five seconds
(SIGSTOP) every thirty. Each reply is held to 1e-4 against what exactly the members that it names say
offline::

    python -m benchmarks.serving_faults --seconds 600 --json docs/results/serving_faults.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.stats import beta

from benchmarks.faulty_member import FOLDER, KINDS, FaultyIngress, FaultyMember
from benchmarks.output import Ratio, Result, main
from deployments.local import serve_locally
from orchestrator.cluster import connected
from orchestrator.config.ensemble import Member, Spec, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.serving import AppSettings, Placement, ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.load.connection import Reply
from orchestrator.load.generate import open_loop
from orchestrator.load.request import post
from orchestrator.models.build import build
from orchestrator.runtime import execute
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

SIGNATURE = Signature(
    task="classification",
    input_shape=(1, 8, 8),
    input_dtype="uint8",
    outputs=10,
    classes=tuple("0123456789"),
    mean=(78.0,),
    std=(96.0,),
)
MEMBERS, QUORUM, REPLICAS, ROWS = 3, 2, 2, 64
TOLERANCE = 1e-4
GOAL = 0.999
PATIENCE_S = 5.0
"""The client's; the deadline is the server's."""
STOPPED_S = 5.0


@dataclass(frozen=True)
class Offline:
    """What each member says to each row of the pool."""

    spec: Spec
    rows: np.ndarray
    outputs: Mapping[Member, np.ndarray]

    def probabilities(self, names: frozenset[str], row: int) -> np.ndarray:
        """Of the tree with these members alone [K]."""
        if names not in self._known:
            left = {member: found for member, found in self.outputs.items() if member.name in names}
            probs = replay(self.spec.tree, left, "classification").probs
            assert probs is not None
            self._known[names] = probs
        found: np.ndarray = self._known[names][row]
        return found

    @cached_property
    def _known(self) -> dict[frozenset[str], np.ndarray]:
        return {}


def prepare(store: Store) -> Offline:
    """Members of random weights, and a mix that is fitted to tell what they say most."""
    images = np.random.default_rng(0).integers(0, 256, (512, 1, 8, 8), dtype=np.uint8)
    model = Mlp(kwargs=MlpKwargs(widths=(32,)))
    outputs = {}
    for seed in range(MEMBERS):
        draft = Draft(model=model, signature=SIGNATURE, data="none", seed=seed)
        module = build(model, SIGNATURE, seed=seed)
        member = Member(name=f"m{seed}", digest=store.put_artifact(draft, tensors_of(module)))
        outputs[member] = execute.load(store, member.digest, member.execution)(images)
    labels = np.sum(list(outputs.values()), axis=0).argmax(axis=1)
    mix = WeightedMix(members=tuple(outputs), quorum=QUORUM)
    tree = fit(mix, outputs, labels, Metric(), "classification")
    spec = Spec(name="mix", tree=tree, signature=SIGNATURE)
    said = {
        member: outputs[Member(name=member.name, digest=member.digest)][:ROWS] for member in distinct(tree)
    }
    return Offline(spec, images[:ROWS], said)


@contextmanager
def serving(
    store: Store, offline: Offline, folder: Path, placement: Placement, deadline_s: float
) -> Iterator[str]:
    """Served with members that can be told to fail; yields the server's URL. Ray must not run yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = AppSettings(
        store=store.location,
        specs=(offline.spec,),
        serving=ServingSettings(
            port=port, placement=placement, compile=False, replicas=REPLICAS, deadline_s=deadline_s
        ),
    )
    variables = {FOLDER: str(folder), "PYTHONPATH": str(Path(__file__).parents[1])}
    with (
        patch.dict(os.environ, variables),
        patch("deployments.members.Member", FaultyMember),
        patch("deployments.build.Ingress", FaultyIngress),
        connected(cpus=2),
        serve_locally(settings, ready_s=300) as url,
    ):
        yield url


async def inside(folder: Path, every_s: float, rng: np.random.Generator, made: list[str]) -> None:
    """A fault in the next batch of a random member, again and again."""
    while True:
        await asyncio.sleep(every_s)
        name, kind = f"m{rng.integers(MEMBERS)}", KINDS[rng.integers(len(KINDS))]
        draft = folder / "draft"
        draft.write_text(kind)
        draft.rename(folder / f"{name}.fault")
        made.append(kind)


async def processes(folder: Path, every_s: float, rng: np.random.Generator, made: list[str]) -> None:
    """A random replica is killed, or stopped for a while, in turns."""
    stopped: list[int] = []
    try:
        while True:
            await asyncio.sleep(every_s)
            files = sorted(folder.glob("*.pid"))
            file = files[rng.integers(len(files))]
            pid, kind = int(file.stem), "stop" if len(made) % 2 else "kill"
            try:
                os.kill(pid, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
            except ProcessLookupError:  # Serve has put another one in its place
                file.unlink()
                continue
            made.append(kind)
            if kind == "kill":
                file.unlink()
                continue
            stopped.append(pid)
            await asyncio.sleep(min(STOPPED_S, every_s / 2))
            _go_on(stopped.pop())
    finally:
        for pid in stopped:
            _go_on(pid)


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


Faults = Callable[[Path, float, np.random.Generator, list[str]], Awaitable[None]]
"""Makes faults until it is cancelled, and notes which."""


async def phase(
    url: str, offline: Offline, folder: Path, faults: Faults | None, every_s: float, load: argparse.Namespace
) -> dict[str, Any]:
    """One row of the result: load with one kind of faults."""
    targets = [post(f"{url}/v2/models/mix/infer", request_body(row), {}) for row in offline.rows]
    injecting, made = None, list[str]()
    if faults is not None:
        injecting = asyncio.ensure_future(faults(folder, every_s, np.random.default_rng(load.seed), made))
    found: list[Sent] = []

    def seen(number: int, reply: Reply | None, latency_s: float) -> None:
        found.append(Sent(number % ROWS, reply, latency_s))

    try:
        report = await asyncio.to_thread(
            open_loop,
            targets,
            rate=load.rate,
            seconds=load.seconds,
            seed=load.seed,
            timeout_s=PATIENCE_S,
            seen=seen,
        )
    finally:
        if injecting is not None:
            injecting.cancel()
            await asyncio.wait([injecting])
    if injecting is not None and not injecting.cancelled():
        injecting.result()  # faults that ended by themselves: the figures are not those of faults
    late = report.plain()["late_p99_ms"]
    figures = judged(found, offline, load.deadline_ms / 1e3)
    return {"made": dict(Counter(made)), **figures, "generator_late_p99_ms": late}


@dataclass(frozen=True)
class Sent:
    """A request and what came of it; no reply is a connection that broke, or silence."""

    row: int
    reply: Reply | None
    seconds: float


def request_body(row: np.ndarray) -> bytes:
    tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": row.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()


def judged(found: Sequence[Sent], offline: Offline, deadline_s: float) -> dict[str, Any]:
    statuses = Counter("none" if one.reply is None else str(one.reply.status) for one in found)
    in_time = degraded = wrong = 0
    for one in found:
        if one.reply is None or one.reply.status != 200:
            continue
        in_time += one.seconds <= deadline_s
        reply = json.loads(one.reply.body)
        facts = reply["parameters"]
        degraded += facts["degraded"]
        wrong += not _right(reply, facts, offline, one.row)
    answered = statuses["200"]
    times = sorted(one.seconds for one in found)
    return {
        "requests": len(found),
        "answered_in_time": in_time / len(found),
        "late_or_failed_at_most": upper_bound(len(found) - in_time, len(found)),
        "answered": answered / len(found),
        "statuses": dict(statuses),
        "degraded": degraded / max(answered, 1),
        "wrong": wrong,
        "wrong_at_most": upper_bound(wrong, answered),
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(0.99 * len(times))],
    }


def _right(reply: Mapping[str, Any], facts: Mapping[str, Any], offline: Offline, row: int) -> bool:
    """Whether a reply is what its members say, and says that it is degraded if it is."""
    names = frozenset(facts["members_used"].split(","))
    said = np.array(reply["outputs"][0]["data"])
    close = np.abs(said - offline.probabilities(names, row)).max() <= TOLERANCE
    return bool(close) and facts["degraded"] == (len(names) < MEMBERS)


def upper_bound(wrong: int, of: int, confidence: float = 0.95) -> float:
    """Of a share of which `wrong` in `of` were seen (Clopper and Pearson 1934)."""
    return float(beta.ppf(confidence, wrong + 1, of - wrong)) if wrong < of else 1.0


def measure(arguments: argparse.Namespace) -> Result:
    """For each placement all phases one after the other on one server; what breaks off is said in a row."""
    rows: list[dict[str, Any]] = []
    for placement in arguments.placements:
        try:
            for row in _measured(placement, arguments):
                print(json.dumps(row), file=sys.stderr)
                rows.append(row)
        except Exception as error:  # the other placement is to be measured
            rows.append({"placement": placement, "failed": f"{type(error).__name__}: {error}"})
    known = [row for row in rows if "failed" not in row]
    ratios = {
        f"{row['placement']}, faults {row['faults']}": Ratio(row["answered_in_time"], _goal(row))
        for row in known
    }
    wrong = sum(row["wrong"] for row in known) if len(known) == len(rows) else math.nan
    return rows, ratios | {"wrong": Ratio(wrong, 0, at_most=True)}


def _goal(row: Mapping[str, Any]) -> float:
    # A process of a fused ensemble takes all members with it.
    return 0.99 if (row["placement"], row["faults"]) == ("fused", "of processes") else GOAL


def _measured(placement: Placement, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    phases: dict[str, tuple[Faults | None, float]] = {
        "none": (None, 0.0),
        "inside members": (inside, arguments.every_s),
        "of processes": (processes, arguments.process_every_s),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "faults"
        folder.mkdir()
        store = Store(Path(temporary) / "store")
        offline = prepare(store)
        with serving(store, offline, folder, placement, arguments.deadline_ms / 1e3) as url:
            for name, (faults, every_s) in phases.items():
                found = asyncio.run(phase(url, offline, folder, faults, every_s, arguments))
                yield {"placement": placement, "faults": name, **found}


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--placements", nargs="+", choices=("distributed", "fused"), default=["distributed", "fused"]
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="of each phase")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--deadline-ms", type=float, default=200.0)
    parser.add_argument("--every-s", type=float, default=2.0, help="between faults inside members")
    parser.add_argument("--process-every-s", type=float, default=30.0, help="between faults of processes")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    main("serving_faults", __doc__, measure, _more)
