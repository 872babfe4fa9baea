"""All networks in one Ray Serve replica: no hop between deployments."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from benchmarks.serving_baselines.batcher import Batcher
from benchmarks.serving_baselines.body import HEADER_LENGTH, answer, parse
from benchmarks.serving_baselines.models import Form, together

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Replica:
    """Runs the networks in the handler, or behind a batcher."""

    def __init__(self, folder: Path, form: Form, batched: bool) -> None:
        self._model = together(folder, form)
        self._batcher = Batcher(self._model) if batched else None

    @api.post("/v2/models/trio/infer")
    async def infer(self, request: Request) -> JSONResponse:
        """The mean of their probabilities."""
        rows = parse(await request.body(), request.headers.get(HEADER_LENGTH))
        logits = self._model(rows) if self._batcher is None else await self._batcher(rows)
        return JSONResponse(answer(logits))


def application(folder: Path, form: Form, limits: dict[str, int], *, batched: bool) -> Application:
    """`limits` are options of the deployment."""
    replica: Application = Replica.options(**limits).bind(folder, form, batched)  # type: ignore[attr-defined]
    return replica
