"""Serving: real HTTP requests through every ensemble in a run, and `orchestrator serve`."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from deployments.local import check_port, serve_locally, serve_until_stopped
from deployments.protocol.model import DATATYPE, INPUT
from orchestrator.cluster import connected
from orchestrator.config.encoding import Category, TableEncoding
from orchestrator.config.ensemble import Cascade, Member, Node, Parallel, Spec, children, walk_nodes
from orchestrator.config.load import validate
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.config.signature import Signature, Task
from orchestrator.ensemble.cascade import combined
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.combine import Floats, decision_margin
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import distinct, predict, replay
from orchestrator.errors import DiffersError, NotFoundError, ServingError
from orchestrator.measure.tasks import class_rules
from orchestrator.pipeline.context import Run, store_root
from orchestrator.store import releases
from orchestrator.store.opening import with_keys
from orchestrator.store.store import Store

TOLERANCE = 1e-5
"""Largest difference between a served fp32 answer and the in-process one."""
EDGE = 1e-4
"""Rows whose members' votes hang on less than this gap between two probabilities are not compared."""
LEAST_UNIT = 0.01
"""Of a certainty at 0 or 1, where one at a half has 1: float32 rounds there, too."""
TIMEOUT_S = 60.0
TURN_S = 600.0
"""Runs on one cluster serve one after the other; a server that stays is complained of after this time."""


def check_served(run: Run, specs: dict[str, Spec]) -> dict[str, dict[str, Any]]:
    """Serve the ensembles, send test rows over HTTP, and hold the answers against in-process ones.

    Returns:
        The summary's `serving` entry of each ensemble.

    Raises:
        DiffersError: a served answer is not the in-process answer.
        ServingError: a request failed.
    """
    serving = run.config.serving
    if serving is None or not specs:
        return {}
    run.cluster()
    settings = AppSettings(
        store=run.store.location,
        specs=tuple(specs.values()),
        allow=tuple(sorted(run.allowed)),
        serving=serving.local(),
    )
    run.progress("serve", f"starting {', '.join(specs)} on port {serving.port}")
    with serve_locally(settings, turn_s=TURN_S) as url:
        figures = {name: _drive(run, spec, url, serving) for name, spec in specs.items()}
    return figures


def _drive(run: Run, spec: Spec, url: str, serving: ServingSettings) -> dict[str, Any]:
    test = run.dataset.part("test")
    rows = np.resize(np.arange(len(test.ids)), serving.requests)
    distinct_rows, place = np.unique(rows, return_inverse=True)
    expected = _in_process(run, spec, test.inputs[distinct_rows])
    outputs = {member: run.outputs(member, "test")[distinct_rows] for member in distinct(spec.tree)}
    margins = decision_margins(spec, outputs)[place]
    answers, times, errors = [], [], 0
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    started = time.perf_counter()
    for row in rows:
        before = time.perf_counter()
        try:
            answers.append(_infer(connection, spec, test.inputs[row : row + 1]))
        except ServingError as error:
            errors += 1
            run.progress("serve", f"{spec.name}: request failed: {error}")
        times.append((time.perf_counter() - before) * 1e3)
    elapsed = time.perf_counter() - started
    connection.close()
    if errors:
        raise ServingError(f"{errors} of {len(rows)} requests to {spec.name} failed")
    served = np.stack(answers)
    left_out = compare(spec, served, expected[place], margins)
    classification = spec.signature.task == "classification"
    figures = {
        "url": f"{url}/v2/models/{spec.name}",
        "requests": len(rows),
        "errors": errors,
        "p50_ms": float(np.quantile(times, 0.5)),
        "p99_ms": float(np.quantile(times, 0.99)),
        "per_s": len(rows) / elapsed,
        "accuracy": float((served.argmax(1) == test.targets[rows]).mean()) if classification else None,
    }
    but = f" ({left_out} left out, on the edge of a vote)" if left_out else ""
    run.progress(
        "serve",
        f"{spec.name}: {len(rows)} requests, answers equal to in-process ones{but}, "
        f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms",
    )
    return figures


def _infer(connection: http.client.HTTPConnection, spec: Spec, rows: np.ndarray) -> np.ndarray:
    """One inference request with JSON tensors; float32 [K] probabilities or values."""
    body = json.dumps({"inputs": tensors_of(spec.signature, rows)})
    try:
        connection.request(
            "POST", f"/v2/models/{spec.name}/infer", body, {"Content-Type": "application/json"}
        )
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise ServingError("no answer", f"{type(error).__name__}: {error}") from error
    if reply.status != 200:
        raise ServingError(f"status {reply.status}", text.decode(errors="replace")[:300])
    wanted = "values" if spec.signature.task == "regression" else "probabilities"
    outputs = {found["name"]: found["data"] for found in json.loads(text)["outputs"]}
    return np.asarray(outputs[wanted], dtype=np.float32).ravel()


def tensors_of(signature: Signature, rows: np.ndarray) -> list[dict[str, Any]]:
    """Rows [N, ...] as a client would send them: one tensor, or one for each named column."""
    encoding, count = signature.encoding, len(rows)
    if not isinstance(encoding, TableEncoding):
        datatype = DATATYPE[signature.input_dtype]
        return [
            {"name": INPUT, "shape": list(rows.shape), "datatype": datatype, "data": rows.ravel().tolist()}
        ]
    found = []
    for place, column in enumerate(encoding.columns):
        values: list[Any] = rows[:, place].tolist()
        if isinstance(column, Category):
            values = [None if code < 1 else column.values[int(code) - 1] for code in values]
        datatype = "BYTES" if isinstance(column, Category) else "FP32"
        found.append({"name": column.name, "shape": [count, 1], "datatype": datatype, "data": values})
    return found


def _in_process(run: Run, spec: Spec, inputs: np.ndarray) -> np.ndarray:
    """The same rows through the same walk in this process, row by row as they are served."""
    members = {member: run.executable(member) for member in distinct(spec.tree)}
    answers = [
        predict(spec.tree, members, inputs[i : i + 1], spec.signature.task) for i in range(len(inputs))
    ]
    return np.concatenate([found.outputs if found.probs is None else found.probs for found in answers])


def decision_margins(spec: Spec, outputs: Mapping[Member, Output]) -> Floats:
    """How safe each row [N] is from other votes in the tree where members' outputs are rounded otherwise.

    See `combine.decision_margin`; infinite where nobody votes. A cascade's exits by agreement count
    votes, too: those of a stage's members for what the stage says. Of its other exits it is how far the
    row's certainty is from the threshold: that lies midway between those of the rows it was fitted on, but
    these are other rows.

    Args:
        spec: A fitted ensemble.
        outputs: Raw outputs [N, K] of each distinct member.
    """
    rows = len(next(iter(outputs.values())))
    found = [np.full(rows, np.inf)]
    if spec.signature.task == "regression":
        return found[0]
    kind = class_rules(spec.signature.task)

    def scores(nodes: Sequence[Node]) -> list[Floats]:
        return [kind.as_classes(replay(node, outputs, kind.task).scores) for node in nodes]

    for node in walk_nodes(spec.tree):
        margins = []
        if isinstance(node, Parallel):
            margins.append(decision_margin(scores(node.members), node.weights, node.rule))
        if isinstance(node, Cascade) and node.criterion == "agreement":
            stages = node.stages[:-1]
            margins += [decision_margin(scores([*children(one), one]), None, "vote") for one in stages]
        elif isinstance(node, Cascade):
            found += _exit_margins(node, outputs, kind.task)
        found += [kind.by_row(margin, rows).min(axis=1) for margin in margins]
    return np.asarray(np.min(found, axis=0))


def _exit_margins(node: Cascade, outputs: Mapping[Member, Output], task: Task) -> list[Floats]:
    """For each threshold how far the certainty [N] is from it; infinite for rows that left before.

    Told in units of how much rounding moves a certainty there: an error of the logits hardly moves one near 0
    or 1, where most rows of a good model lie.
    """
    left = replay(node, outputs, task).stages
    now, found = np.zeros((len(left), 0)), []
    for place, threshold in enumerate(node.thresholds or ()):
        now = combined(node, now, replay(node.stages[place], outputs, task).scores, place, task)
        unit = max(4 * threshold * (1 - threshold), 0.0) + LEAST_UNIT
        distance = np.abs(certainty(node.criterion, now, None, task) - threshold) / unit
        found.append(np.where(left >= place, distance, np.inf))
    return found


def compare(
    spec: Spec, served: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], margins: Floats
) -> int:
    """Every row agrees to `TOLERANCE`, but for those whose votes or certainties are on the edge.

    Args:
        spec: The ensemble, for its name.
        served: Answers [N, K] over HTTP.
        expected: Those of this process.
        margins: `decision_margins` [N]. Rows with less than `EDGE` are left out.

    Returns:
        How many rows were left out.

    Raises:
        DiffersError: with the largest difference.
    """
    safe = margins >= EDGE
    scale = np.maximum(np.abs(expected), 1.0)
    worst = float((np.abs(served - expected) / scale)[safe].max(initial=0.0))
    if not worst <= TOLERANCE:  # NaN differs too
        raise DiffersError(f"{spec.name}: a served answer differs from the in-process one", f"{worst:.2g}")
    return int((~safe).sum())


def serve_refs(
    names: Sequence[str],
    *,
    store: str | None,
    serving: Mapping[str, Any],
    allow: Sequence[str],
    signers: Sequence[str] = (),
    as_json: bool,
) -> None:
    """`orchestrator serve`: serve ensembles by name until Ctrl-C.

    Args:
        names: runs, or refs of ensembles.
        store: root of the store; None for the default.
        serving: `ServingSettings` as plain values.
        allow: import paths that members may be built from.
        signers: public keys; only what one of them signed is loaded, if any is given.
        as_json: print one JSON document when ready.

    Raises:
        NotFoundError: a name is neither a run with ensembles nor a ref of one.
        PortInUseError: another process listens on the port.
    """
    root = store_root(store)
    opened = Store(with_keys(root, tuple(signers)) if signers else root, create=False)
    refs = [ref for name in names for ref in _spec_refs(opened, name)]
    settings = validate(
        AppSettings,
        {
            "store": opened.location,
            "refs": list(dict.fromkeys(refs)),
            "allow": list(allow),
            "serving": dict(serving),
        },
        "orchestrator serve",
    )
    check_port(settings.serving.host, settings.serving.port)
    out = sys.stdout  # Ray's own output is kept off it below
    for ref in settings.refs:
        _say_release(opened, ref)
    print(f"starting {', '.join(refs)} ...", file=sys.stderr, flush=True)

    def ready(url: str) -> None:
        served = [opened.spec(ref).name for ref in settings.refs]
        if as_json:
            print(json.dumps({"url": url, "models": served}), file=out, flush=True)
            return
        print(f"ready at {url}; Ctrl-C stops it", file=out, flush=True)
        for name in served:
            print(f"  {url}/v2/models/{name}", file=out, flush=True)

    with connected():
        serve_until_stopped(settings, ready)
    print("stopped", file=sys.stderr)


def _say_release(store: Store, ref: str) -> None:
    """Tell it where another ensemble is served than the ref names now."""
    spec = releases.first(store, ref)
    if spec != store.spec(ref).model_copy(update={"weight_epoch": spec.weight_epoch}):
        live = releases.live(store, ref).value[: releases.SHORT]
        print(
            f"{ref}: the live release {live} is served, not the ensemble of that ref as it is now; "
            f"'orchestrator release promote {ref}' makes it the live one",
            file=sys.stderr,
        )


def _spec_refs(store: Store, name: str) -> list[str]:
    """The name itself when it is an ensemble's ref, else all ensembles of the run of that name."""
    found = [ref for ref in store.refs(name) if ref == name or ref.startswith(f"{name}/")]
    specs = [ref for ref in found if _is_spec(store, ref)]
    if not specs:
        raise NotFoundError(
            "no ensemble of that name in the store", name, "see 'orchestrator models', or run it first"
        )
    return specs


def _is_spec(store: Store, ref: str) -> bool:
    try:
        store.spec(ref)
    except NotFoundError:
        return False
    return True
