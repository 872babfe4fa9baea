"""The OpenAPI description of the routes beside those of the models: releases, feedback, figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config.base import Settings
from orchestrator.config.release import Canary, Labels, Promote, Reweight, Rollback

Json = dict[str, Any]

SCHEMA = "#/components/schemas/{model}"
BASE = "/admin/models/{model}"
ERRORS = {
    "400": "The body is not valid, or does not fit the model",
    "404": "No model of that name has releases, or no such release",
    "405": "The path has no such method",
    "408": "The body did not arrive in time",
    "409": "A replica cannot run it, or another change came first; nothing has changed",
    "413": "The body is too long",
    "415": "The body's encoding is not supported",
    "500": "A defect",
    "503": "A replica could not be reached, or too much is in work",
    "504": "A replica did not answer in time",
}
CHANGES: Mapping[str, tuple[str, str, type[Settings]]] = {
    BASE + "/promote": ("promote", "Make a release the live one", Promote),
    BASE + "/rollback": ("rollback", "Go back to an earlier release", Rollback),
    BASE + "/weights": ("weights", "The live release with other weights or thresholds", Reweight),
    BASE + "/canary": ("canary", "Try a release beside the live one", Canary),
    "/v2/models/{model}/feedback": ("feedback", "Labels of earlier answers", Labels),
}


def paths() -> dict[str, Json]:
    """Each path with its methods."""
    found: dict[str, Json] = {
        "/admin/models": {"get": _action("states", "What is live of all models")},
        BASE: {"get": _action("state", "What is live, and what each replica runs", named=True)},
    }
    for path, (name, summary, body) in CHANGES.items():
        action = _action(name, summary, named=True, errors=("400", "408", "409", "413", "415"))
        schema = {"$ref": SCHEMA.format(model=body.__name__)}
        action["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        found[path] = {"post": action}
    ending = _action("stop_canary", "End the canary", named=True, errors=("409",))
    found[BASE + "/canary"]["delete"] = ending
    return found


def schemas() -> dict[str, Json]:
    """Of the bodies."""
    found: dict[str, Json] = {}
    for _, _, body in CHANGES.values():
        schema = body.model_json_schema(ref_template=SCHEMA)
        found |= schema.pop("$defs", {})
        found[body.__name__] = schema
    return found


def _action(name: str, summary: str, *, named: bool = False, errors: tuple[str, ...] = ()) -> Json:
    of_model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": SCHEMA.format(model="Error")}}}
    known = ("405", "500", "503", "504", *(["404"] if named else []), *errors)
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [of_model] if named else [],
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": {}}}},
            **{status: {"description": ERRORS[status], "content": error} for status in sorted(known)},
        },
    }
