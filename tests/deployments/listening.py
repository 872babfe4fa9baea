"""The application on real ports without Ray: uvicorn in a thread, over answers that a test can foretell."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import uvicorn

from deployments.exchange import Answer, Question, Served
from deployments.front import Front
from deployments.grpc_server import GrpcServer
from deployments.http.access import Access
from deployments.http.app import HttpApp
from deployments.protocol.model import Model, describe
from orchestrator.config.serving import ServingSettings
from tests.deployments.models import CASCADE, FEATURES, IMAGES, spec

IMAGE_MODEL = describe(spec(tree=CASCADE, signature=IMAGES, name="images"))
FEATURE_MODEL = describe(spec(signature=FEATURES, name="features"))


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def expected(model: Model, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What `served` answers: plain functions of each row, so that a swapped or shifted row is seen."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    members = len(model.members)
    if model is FEATURE_MODEL:
        always = {"values": np.stack([flat.sum(axis=1), flat[:, 0]], axis=1).astype(np.float32)}
    else:
        second = flat.mean(axis=1) / 255
        probs = np.stack([1 - second, second], axis=1).astype(np.float32)
        always = {"probabilities": probs, "label": probs.argmax(axis=1).astype(np.int64)}
    answer = next(iter(always.values()))
    return always | {
        "member_probs": np.repeat(answer[:, None], members, axis=1),
        "member_weights": np.full((len(rows), members), 0.5, np.float32),
        "disagreement": answer[:, 0],
        "exit_stage": (flat[:, 0] > 100).astype(np.int64),
    }


def served(model: Model) -> Served:
    async def predict(question: Question) -> Answer:
        found = expected(model, question.rows)
        return Answer({name: found[name] for name in question.outputs}, ("a", "b"), 3, False)

    async def ready() -> None:
        pass

    return Served(model, predict, ready)


def front(**limits: float) -> Front:
    settings = ServingSettings.model_validate({"deadline_s": 10, "max_body_bytes": 2**20, **limits})
    return Front([served(IMAGE_MODEL), served(FEATURE_MODEL)], settings)


@contextmanager
def listening(over: Front, access: Access | None = None) -> Iterator[Ports]:
    """Serve in a thread for the length of the block."""
    ports = Ports(free_port(), free_port())
    app = HttpApp(over, [GrpcServer(over, "127.0.0.1", ports.grpc, access)])
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=ports.http, lifespan="on", log_level="warning")
    )
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield ports
    finally:
        server.should_exit = True
        thread.join()
