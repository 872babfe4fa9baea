"""Ray Serve's model composition as its documentation shows it: an ingress with a handle to each member.

https://docs.ray.io/en/latest/serve/model_composition.html
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from benchmarks.serving_baselines.batcher import Batcher
from benchmarks.serving_baselines.body import HEADER_LENGTH, answer, parse
from benchmarks.serving_baselines.models import Form, one

MEMBERS = 3
api = FastAPI()


@serve.deployment
class Member:
    """One network."""

    def __init__(self, folder: Path, number: int, form: Form) -> None:
        self._model = one(folder, number, form)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Logits [B, classes]."""
        return self._model(rows)


@serve.deployment
class BatchedMember:
    """One network behind a batcher."""

    def __init__(self, folder: Path, number: int, form: Form) -> None:
        self._batcher = Batcher(one(folder, number, form))

    async def predict(self, rows: np.ndarray) -> np.ndarray:
        """Logits [B, classes]."""
        return await self._batcher(rows)


@serve.deployment
@serve.ingress(api)
class Ensemble:
    """Asks all members at once."""

    def __init__(self, *members: DeploymentHandle[Any]) -> None:
        self._members = members

    @api.post("/v2/models/trio/infer")
    async def infer(self, request: Request) -> JSONResponse:
        """The mean of their probabilities."""
        rows = parse(await request.body(), request.headers.get(HEADER_LENGTH))
        logits = await asyncio.gather(*(member.predict.remote(rows) for member in self._members))
        return JSONResponse(answer(np.stack(logits)))


def application(folder: Path, form: Form, limits: dict[str, int], *, batched: bool) -> Application:
    """`limits` are options of every deployment; the documentation's example has none."""
    member: Any = BatchedMember if batched else Member
    bound = [
        member.options(name=f"Member{number}", **limits).bind(folder, number, form)
        for number in range(MEMBERS)
    ]
    ensemble: Application = Ensemble.options(**limits).bind(*bound)  # type: ignore[attr-defined]
    return ensemble
