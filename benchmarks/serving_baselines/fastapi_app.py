"""FastAPI and uvicorn, one process: the networks run in the handler, or behind a batcher of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchmarks.serving_baselines.batcher import Batcher
from benchmarks.serving_baselines.body import HEADER_LENGTH, answer, parse
from benchmarks.serving_baselines.models import Form, together


def application(folder: Path, form: Form, *, batched: bool) -> FastAPI:
    """The application."""
    app = FastAPI()
    model = together(folder, form)
    batcher = Batcher(model) if batched else None

    @app.post("/v2/models/trio/infer")
    async def infer(request: Request) -> JSONResponse:
        rows = parse(await request.body(), request.headers.get(HEADER_LENGTH))
        logits = model(rows) if batcher is None else await batcher(rows)
        return JSONResponse(answer(logits))

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--batched", action="store_true")
    parser.add_argument("--port", type=int, required=True)
    own = parser.parse_args()
    app = application(own.folder, own.form, batched=own.batched)
    uvicorn.run(app, host="127.0.0.1", port=own.port, log_level="warning")
