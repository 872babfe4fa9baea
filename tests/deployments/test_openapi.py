from __future__ import annotations

import asyncio
import re
from typing import Any

from deployments.http.app import HttpApp
from deployments.http.endpoints import Endpoints
from tests.deployments.calling import send
from tests.deployments.listening import IMAGE_MODEL, front

DOCUMENT: dict[str, Any] = asyncio.run(send(HttpApp(front()), "GET", "/openapi.json")).json()


def test_every_route_is_described_with_its_methods() -> None:
    described = {path: {verb.upper() for verb in item} for path, item in DOCUMENT["paths"].items()}
    table = {path: set(handlers) for path, handlers in Endpoints(front()).table().items()}
    del table["/v2/"]  # the other spelling of /v2
    assert described == table


def test_references_lead_somewhere_and_names_differ() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    used = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT)))
    assert used == set(schemas)
    names = [action["operationId"] for item in DOCUMENT["paths"].values() for action in item.values()]
    assert len(set(names)) == len(names)


def test_path_parameters_are_the_paths_own() -> None:
    for path, item in DOCUMENT["paths"].items():
        for action in item.values():
            named = {one["name"] for one in action["parameters"] if one["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_models_are_listed() -> None:
    (model, version) = DOCUMENT["paths"]["/v2/models/{model}/versions/{version}"]["get"]["parameters"]
    assert model["schema"]["enum"] == ["features", "images"]
    assert IMAGE_MODEL.version in version["schema"]["enum"]
