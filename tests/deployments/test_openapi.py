from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any

import pytest

from deployments.http.admin import Admin
from deployments.http.app import HttpApp
from deployments.http.endpoints import Endpoints
from tests.deployments.calling import send
from tests.deployments.listening import IMAGE_MODEL, front, listening

ADMIN = Admin({}, front()).routes()
DOCUMENT: dict[str, Any] = asyncio.run(send(HttpApp(front(), (), ADMIN), "GET", "/openapi.json")).json()


def test_every_route_is_described_with_its_methods() -> None:
    described = {path: {verb.upper() for verb in item} for path, item in DOCUMENT["paths"].items()}
    table = {path: set(handlers) for path, handlers in (Endpoints(front()).table() | ADMIN).items()}
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


def test_without_releases_their_routes_are_not_described() -> None:
    plain = asyncio.run(send(HttpApp(front()), "GET", "/openapi.json")).json()
    assert not [path for path in plain["paths"] if path.startswith("/admin")]
    assert "Promote" not in plain["components"]["schemas"]


@pytest.mark.slow
def test_requests_made_from_the_document_get_the_answers_that_it_has() -> None:
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    with listening(front()) as ports:
        url = f"http://127.0.0.1:{ports.http}/openapi.json"
        options = ["--phases", "fuzzing", "--max-examples", "3", "--generation-deterministic"]
        options += ["--suppress-health-check", "all"]  # a slow machine is no fault
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", url, "--no-color", "-c", checks, *options],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "Tested: 20" in done.stdout
