"""Handlers of all routes but inference."""

from __future__ import annotations

from deployments.front import SERVER_NAME, Entry, Front
from deployments.http.asgi import EventStream, Reply, json_reply
from deployments.http.infer import infer
from deployments.http.limits import read_in_time
from deployments.http.predict import predict
from deployments.http.routes import Call, Handler
from deployments.protocol import openapi
from deployments.protocol.errors import ProtocolError
from deployments.protocol.rest import EXTENSIONS, only_ready
from orchestrator import __version__

INDEX_BYTES = 4096
"""Longest body of a question for the models."""


class Endpoints:
    """The handlers, over the models of a front; the document describes the routes of `releases`, too."""

    def __init__(self, front: Front, *, releases: bool = False) -> None:
        self._front = front
        models = [entry.model for entry in front.entries.values()]
        self._openapi = json_reply(openapi.document(models, __version__, releases=releases))

    def table(self) -> dict[str, dict[str, Handler]]:
        """The handler of each path and method."""
        # Both spellings of /v2: clients ask for it and do not follow redirects.
        table: dict[str, dict[str, Handler]] = {
            "/v2": {"GET": self.server},
            "/v2/": {"GET": self.server},
            "/v2/health/live": {"GET": self.live},
            "/v2/health/ready": {"GET": self.ready},
            "/v2/models/stats": {"GET": self.all_statistics},
            "/v2/repository/index": {"POST": self.index},
            "/v2/repository/models/{model}/load": {"POST": self.change},
            "/v2/repository/models/{model}/unload": {"POST": self.change},
            "/openapi.json": {"GET": self.openapi},
            "/predict": {"POST": self.predict},
        }
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            table |= {
                base: {"GET": self.metadata},
                base + "/ready": {"GET": self.model_ready},
                base + "/config": {"GET": self.config},
                base + "/stats": {"GET": self.statistics},
                base + "/infer": {"POST": self.infer},
                base + "/predict": {"POST": self.predict},
            }
        return table

    async def server(self, _call: Call) -> Reply:
        return json_reply({"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, _call: Call) -> Reply:
        return json_reply({"live": True})

    async def ready(self, _call: Call) -> Reply:
        await self._front.ready()
        return json_reply({"ready": True})

    async def metadata(self, call: Call) -> Reply:
        return json_reply(self._find(call).model.metadata())

    async def model_ready(self, call: Call) -> Reply:
        found = self._find(call)
        await self._front.ready([found])
        return json_reply({"name": found.model.name, "ready": True})

    async def config(self, call: Call) -> Reply:
        return json_reply(self._find(call).model.config(self._front.serving.max_body_bytes))

    async def statistics(self, call: Call) -> Reply:
        return _statistics([self._find(call)])

    async def all_statistics(self, _call: Call) -> Reply:
        return _statistics(list(self._front.entries.values()))

    async def index(self, call: Call) -> Reply:
        longest_s = self._front.serving.deadline_s
        ready = only_ready(await read_in_time(call.headers, call.receive, INDEX_BYTES, longest_s))
        models = await self._front.index()
        return json_reply([one for one in models if one["state"] == "READY" or not ready])

    async def change(self, call: Call) -> Reply:
        found = self._find(call)
        raise ProtocolError(
            "models are not loaded or unloaded by clients", found.model.name, "deploy another application"
        )

    async def openapi(self, _call: Call) -> Reply:
        return self._openapi

    async def infer(self, call: Call) -> Reply:
        version = call.path.get("version", "")
        return await infer(self._front, self._find(call), call.headers, call.receive, version)

    async def predict(self, call: Call) -> Reply | EventStream:
        return await predict(self._front, call)

    def _find(self, call: Call) -> Entry:
        return self._front.find(call.path["model"], call.path.get("version"))


def _statistics(entries: list[Entry]) -> Reply:
    return json_reply({"model_stats": [entry.statistics.plain(entry.model) for entry in entries]})
