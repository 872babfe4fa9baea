"""The OpenAPI document of all routes: https://spec.openapis.org/oas/v3.1.0"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.protocol import openapi_admin
from deployments.protocol.datatypes import DATATYPES
from deployments.protocol.model import Model

Json = dict[str, Any]

ERRORS = {
    "400": "The request does not match the protocol or the model",
    "404": "No such model, version or path",
    "405": "The path has no such method",
    "408": "The body did not arrive in time",
    "413": "The body is too long",
    "415": "The body's encoding or media type is not supported",
    "500": "A defect",
    "503": "Overloaded, or too few members answered; try again after `Retry-After` seconds",
    "504": "No answer in time",
}


_OF_A_MODEL = (
    ("", "metadata", "Inputs and outputs", "ModelMetadata"),
    ("/config", "config", "Configuration in Triton's form", None),
    ("/stats", "statistics", "Counts and times", None),
    ("/ready", "model_ready", "The model can answer", None),
)


def document(models: Sequence[Model], version: str, *, releases: bool = False) -> Json:
    """The document of a server with these models.

    Args:
        models: that are served.
        version: of the server.
        releases: with the routes that change them.
    """
    names = [model.name for model in models]
    versions = [model.version for model in models]
    extras = sorted({output.name for model in models for output in (*model.outputs, *model.extras)})
    paths = {
        "/v2": {"get": _get("server", "Name, version and extensions of the server", "ServerMetadata")},
        "/v2/health/live": {"get": _get("live", "The server runs")},
        "/v2/health/ready": {"get": _get("ready", "Every model can answer", errors=("503",))},
        "/v2/models/stats": {"get": _get("all_statistics", "Counts and times of all models")},
        "/v2/repository/index": {"post": _get("index", "Models and their state")},
        "/openapi.json": {"get": _get("openapi", "This document")},
        "/predict": {"post": _predict("predict", extras, [_in("query", "model", names)])},
    }
    for name, base, where in (
        ("", "/v2/models/{model}", [_in("path", "model", names)]),
        (
            "_version",
            "/v2/models/{model}/versions/{version}",
            [_in("path", "model", names), _in("path", "version", versions)],
        ),
    ):
        for route, action, summary, schema in _OF_A_MODEL:
            described = _get(action + name, summary, schema, parameters=where, errors=("404", "503"))
            paths[base + route] = {"get": described}
        paths[base + "/infer"] = {"post": _infer(f"infer{name}", where)}
        paths[base + "/predict"] = {"post": _predict(f"predict_model{name}", extras, where)}
    for verb in ("load", "unload"):
        change = _get(verb, "Refused", parameters=[_in("path", "model", names)], errors=("400", "404"))
        del change["responses"]["200"]
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {"post": change}
    if releases:
        paths |= openapi_admin.paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "orchestrator",
            "version": version,
            "description": "Open Inference Protocol V2, and /predict.",
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS | (openapi_admin.schemas() if releases else {})},
    }


def _in(where: str, name: str, values: Sequence[str]) -> Json:
    """A parameter of the path, which must be there, or of the query, which may be."""
    schema = {"type": "string", "enum": sorted(set(values))}
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _content(schema: str) -> Json:
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}}


def _responses(schema: str | None, errors: Sequence[str]) -> Json:
    good = _content(schema) if schema else {"schema": {}}
    error = {"application/json": _content("Error")}
    return {
        "200": {"description": "The answer", "content": {"application/json": good}},
        **{status: {"description": ERRORS[status], "content": error} for status in ("405", "500", *errors)},
    }


def _get(
    name: str,
    summary: str,
    schema: str | None = None,
    *,
    parameters: Sequence[Json] = (),
    errors: Sequence[str] = (),
) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": _responses(schema, errors),
    }


_POST_ERRORS = ("400", "404", "408", "413", "415", "503", "504")
_ANY_BYTES = {"schema": {"type": "string", "format": "binary"}}


def _infer(name: str, where: Sequence[Json]) -> Json:
    found = _get(name, "Inference", "InferenceResponse", parameters=where, errors=_POST_ERRORS)
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Length of the JSON before binary tensors; 0 when the body is a bare tensor",
        "schema": {"type": "integer", "minimum": 0},
    }
    found["parameters"] = [*found["parameters"], length]
    found["requestBody"] = {
        "required": True,
        "content": {
            "application/json": _content("InferenceRequest"),
            "application/octet-stream": _ANY_BYTES,
        },
    }
    found["responses"]["200"]["content"]["application/octet-stream"] = _ANY_BYTES
    return found


def _predict(name: str, extras: Sequence[str], where: Sequence[Json]) -> Json:
    queries = [
        {
            "name": "outputs",
            "in": "query",
            "description": "More outputs, with commas between",
            "schema": {"type": "string", "examples": [",".join(extras)]},
        },
        {
            "name": "threshold",
            "in": "query",
            "description": "Of several labels a row: probability above which one is there",
            "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        },
        {"name": "timeout_ms", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    ]
    found = _get(
        name,
        "Labels and probabilities of rows",
        "Predictions",
        parameters=[*where, *queries],
        errors=_POST_ERRORS,
    )
    found["requestBody"] = {
        "required": True,
        "content": {
            "application/json": _content("Rows"),
            "application/octet-stream": _ANY_BYTES,
            "application/vnd.apache.arrow.stream": _ANY_BYTES,
            "image/png": _ANY_BYTES,
            "image/jpeg": _ANY_BYTES,
            "text/plain": {"schema": {"type": "string"}},
            "audio/wav": _ANY_BYTES,
        },
    }
    # With `Accept: text/event-stream`: an event for each stage of a cascade.
    found["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return found


def _object(required: Sequence[str], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT: Json = {"type": "string"}
_PARAMETERS: Json = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DATATYPE: Json = {"type": "string", "enum": list(DATATYPES)}
_SHAPE: Json = {"type": "array", "items": {"type": "integer"}}
_DATA: Json = {"type": "array", "description": "Flat in row-major order, or nested"}


_TENSOR = _object(
    ["name", "datatype", "shape"],
    name=_TEXT,
    datatype=_DATATYPE,
    shape=_SHAPE,
    parameters=_PARAMETERS,
    data=_DATA,
)


def _list_of(schema: str) -> Json:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}


_SCHEMAS: Json = {
    "Error": _object(["error"], error=_TEXT),
    "ServerMetadata": _object(
        ["name", "version", "extensions"],
        name=_TEXT,
        version=_TEXT,
        extensions={"type": "array", "items": _TEXT},
    ),
    "TensorMetadata": _object(
        ["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, parameters=_PARAMETERS
    ),
    "ModelMetadata": _object(
        ["name", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions={"type": "array", "items": _TEXT},
        platform=_TEXT,
        inputs=_list_of("TensorMetadata"),
        outputs=_list_of("TensorMetadata"),
    ),
    "RequestInput": _TENSOR,
    "RequestOutput": _object(["name"], name=_TEXT, parameters=_PARAMETERS),
    "InferenceRequest": _object(
        ["inputs"],
        id=_TEXT,
        parameters=_PARAMETERS,
        inputs=_list_of("RequestInput"),
        outputs=_list_of("RequestOutput"),
    ),
    "ResponseOutput": _TENSOR,
    "InferenceResponse": _object(
        ["model_name", "outputs"],
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        parameters=_PARAMETERS,
        outputs=_list_of("ResponseOutput"),
    ),
    "Rows": {
        "anyOf": [
            {
                "type": "array",
                "minItems": 1,
                "description": "Rows of numbers, texts, waveforms, or objects by column name",
            },
            _object(["rows"], rows={"type": "array", "minItems": 1}),
        ]
    },
    "Predictions": _object(
        ["model", "version", "predictions"],
        model=_TEXT,
        version=_TEXT,
        weight_epoch={"type": "integer"},
        degraded={"type": "boolean"},
        members_used=_TEXT,
        classes={"type": "array", "items": _TEXT},
        predictions={"type": "array", "items": {"type": "object"}},
    ),
}
