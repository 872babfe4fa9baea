"""Ensembles of plain functions behind the whole HTTP application, in a thread: no Ray, no artifact."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from deployments.contract import Contract
from deployments.exchange import Served
from deployments.front import Front
from deployments.http.access import Access
from deployments.http.app import HttpApp
from deployments.http.server import counted, server_app
from deployments.observe.members import Call, note_walk, watched_members
from deployments.observe.meter import Meter, Snapshot
from deployments.page.site import Site
from deployments.protocol.model import describe
from orchestrator.config.calibration import Reject
from orchestrator.config.ensemble import Cascade, Member, Parallel, Spec, WeightedMix
from orchestrator.config.serving import ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.ensemble.tree import Prediction, distinct
from orchestrator.errors import MemberFailedError
from tests.deployments.raws import SIGNATURES
from tests.deployments.toys import DIGITS

TABLE = Signature(
    task="regression",
    input_shape=(4,),
    input_dtype="float32",
    outputs=1,
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
    target_mean=(0.0,),
    target_std=(1.0,),
)
SMALL, WIDE, DEEP = (Member(name=name, digest=name[0] * 64) for name in ("small", "wide", "deep"))
MIX = Spec(
    name="mix",
    tree=WeightedMix(members=(SMALL, WIDE, DEEP), weights=(0.5, 0.3, 0.2)),
    signature=DIGITS,
    weight_epoch=3,
)
CASCADE = Spec(
    name="cascade",
    tree=Cascade(stages=(SMALL, Parallel(members=(WIDE, DEEP), quorum=1)), thresholds=(0.5,)),
    signature=DIGITS,
)
PRICE = Spec(name="price", tree=WeightedMix(members=(SMALL, WIDE), weights=(0.5, 0.5)), signature=TABLE)
LABELS = Spec(
    name="tags",
    tree=WeightedMix(members=(SMALL, WIDE, DEEP), weights=(0.5, 0.3, 0.2)),
    signature=Signature(
        task="multilabel",
        input_shape=(4,),
        input_dtype="float32",
        outputs=3,
        classes=("even", "large", "prime"),
        mean=(0.0,) * 4,
        std=(1.0,) * 4,
    ),
)
"""Several labels a row."""
SPECS = (MIX, CASCADE, PRICE)
RAW_SPECS = tuple(
    Spec(
        name=name,
        tree=WeightedMix(members=(SMALL, WIDE, DEEP), weights=(0.5, 0.3, 0.2), reject=Reject(threshold=0.6)),
        signature=signature,
    )
    for name, signature in SIGNATURES.items()
)
"""Text, sound and named columns."""


def linear(seed: int, signature: Signature, *, delay_s: float = 0.0, fails: float = 0.0) -> Call:
    """A member that is a random linear map, takes its time, and fails for a share of the calls."""
    random = np.random.default_rng(seed)
    size = int(np.prod(signature.input_shape))
    weights = random.normal(size=(size, signature.outputs)) / size**0.5

    async def call(rows: np.ndarray) -> np.ndarray:
        await asyncio.sleep(delay_s * random.exponential())
        if random.random() < fails:
            raise MemberFailedError("this one fails at times")
        scale = {"uint8": 64.0, "int16": 8000.0, "int32": 16.0}.get(signature.input_dtype, 1.0)
        return np.asarray(rows.reshape(len(rows), -1) / scale @ weights, dtype=np.float32)

    return call


def served(spec: Spec, meter: Meter, calls: Mapping[Member, Call]) -> Served:
    """An ensemble that is asked in this process."""

    def saw(prediction: Prediction, rounds: Sequence[float]) -> None:
        note_walk(spec.name, prediction, rounds, meter)

    watching = watched_members(spec.name, calls, meter)
    contract = Contract(spec, watching, ServingSettings(), saw=saw)

    async def ready() -> None:
        pass

    return Served(describe(spec), contract.answer, ready)


def application(serving: ServingSettings, specs: Sequence[Spec] = SPECS, **calls: Any) -> ASGIApp:
    """The whole application over the specs; `calls` says how members of a name behave."""
    meter = Meter("test")

    async def nobody() -> Sequence[Snapshot]:
        return ()

    found = [
        served(
            spec,
            meter,
            {
                member: linear(seed, spec.signature, **calls.get(member.name, {}))
                for seed, member in enumerate(distinct(spec.tree))
            },
        )
        for spec in specs
    ]
    protocol = HttpApp(
        Front(counted(found, meter, serving.deadline_s), serving),
        more=Site(specs, found, meter, nobody).routes(),
    )
    return server_app(protocol, [spec.name for spec in specs], Access(serving.access), serving, meter)


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The application on a free port of this machine, for the length of the block; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)
