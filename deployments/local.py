"""Serving from a program that is connected to Ray: start, wait until ready, stop what was started."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from deployments.build import build_app
from deployments.members import ADDED
from orchestrator import keys
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.errors import ClusterError, ConfigError, PortInUseError, ServingError, last_line

APPLICATION = "orchestrator-local"
"""Name in Serve; not that of `serve.yaml`, which belongs to whoever deployed it."""
NAMESPACE = "orchestrator"
STOP_S = 60.0
"""Longest wait for Serve to stop."""
START_ATTEMPTS = 5
TURN_POLL_S = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def serve_locally(settings: AppSettings, *, ready_s: float = 180.0, turn_s: float = 0.0) -> Iterator[str]:
    """Serve for the length of the block; at its end only what it started is stopped.

    Ray must be connected. What a killed program left of an earlier call on the same cluster is removed first;
    anything else that Serve runs there is left alone.

    Args:
        settings: what is served, and where.
        ready_s: longest time until every model is ready.
        turn_s: longest wait for another program that serves on this cluster in such a block to leave it.

    Yields:
        The server's URL, like `http://127.0.0.1:8000`.

    Raises:
        PortInUseError: another process listens on the port.
        ServingError: another application is served on this cluster, or ours did not become ready.
        ClusterError: Ray is not connected.
        ConfigError: the files of TLS or keys cannot be used; or see `deployments.build.build_app`.
        NotFoundError: likewise.
    """
    if not ray.is_initialized():
        raise ClusterError("Ray is not connected", None, "connect before serving")
    _check_files(settings.serving)
    application = build_app(settings, direct_on=_this_node())
    host, port = settings.serving.host, settings.serving.port
    with _only_one(turn_s):
        _clear(host, port)
        check_port(host, port)
        if settings.serving.grpc_port is not None:
            check_port(host, settings.serving.grpc_port)
        try:
            _start(application)
            address = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
            scheme = "http" if settings.serving.tls is None else "https"
            _wait_ready(scheme, address, port, ready_s)
            yield f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}"
        finally:
            _stop(host, port)


def serve_until_stopped(
    settings: AppSettings, on_ready: Callable[[str], None], *, ready_s: float = 180.0
) -> None:
    """Serve in the foreground until Ctrl-C or SIGTERM.

    Args:
        settings: what is served, and where.
        on_ready: called with the URL once every model answers.
        ready_s: longest time until then.

    Raises:
        as `serve_locally`
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), serve_locally(settings, ready_s=ready_s) as url:
            on_ready(url)
            threading.Event().wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def check_port(host: str, port: int) -> None:
    """Make sure that `port` can be listened on.

    Raises:
        PortInUseError: another process listens there.
        ServingError: the address is not this machine's, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        place = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                "another process listens on the port", place, "stop it or choose another port"
            ) from error
        raise ServingError(
            f"cannot listen ({error.strerror})", place, "choose another host or port"
        ) from error


def _this_node() -> str:
    """The resource that only this program's node has."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = [one for one in ray.nodes() if one["NodeID"] == here]
    return next(str(name) for name in node["Resources"] if name.startswith("node:") and "__" not in name)


class _Lease:
    """An actor without work, whose name says that the program which made it lives: it dies with it."""


@contextmanager
def _only_one(turn_s: float) -> Iterator[None]:
    lease: Any = ray.remote(num_cpus=0)(_Lease)
    end = time.monotonic() + turn_s
    while True:
        try:
            actor = lease.options(name=f"serving-{APPLICATION}", namespace=NAMESPACE).remote()
            break
        except ValueError as error:
            if time.monotonic() >= end:
                raise ServingError(
                    "another program already serves on this Ray cluster",
                    None,
                    "stop it, or use 'serve deploy'",
                ) from error
        time.sleep(TURN_POLL_S)
    try:
        yield
    finally:
        ray.kill(actor)


def _clear(host: str, port: int) -> None:
    """Remove an earlier application of ours, whose program is dead; refuse to touch others."""
    status = serve.status()
    # With it go members that its releases brought.
    others = sorted(name for name in status.applications if name.partition(ADDED)[0] != APPLICATION)
    if others:
        raise ServingError(
            "Ray Serve already runs other applications here",
            ", ".join(others),
            "stop them with 'serve shutdown'",
        )
    if status.applications or status.proxies:
        _stop(host, port)


def _check_files(serving: ServingSettings) -> None:
    """Say here what would otherwise be an actor's traceback."""
    if serving.access.keys is not None:
        keys.read(Path(serving.access.keys))
    if serving.tls is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            serving.tls.certificate, serving.tls.key
        )
    except OSError as error:  # ssl.SSLError is one
        files = f"{serving.tls.certificate}, {serving.tls.key}"
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"the TLS files cannot be used ({reason})", files) from error


def _start(application: Application) -> None:
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            serve.start(proxy_location="Disabled", logging_config=quiet)
            break
        except ActorDiedError as error:
            # Of an earlier Serve that was told to stop and is still going down.
            if attempt == START_ATTEMPTS:
                raise ServingError("Ray Serve could not start", last_line(error), "start again") from error
            time.sleep(1)
    serve.run_many(
        [serve.RunTarget(application, name=APPLICATION, route_prefix="/", logging_config=quiet)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _stop(host: str, port: int) -> None:
    """Stop Serve and wait until its port is free.

    `serve.shutdown` silently does nothing when the controller is too busy to answer within 5 s, so the
    outcome is looked at, and it is called again.
    """
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        serve.shutdown()
        if _stopped(host, port):
            return
        time.sleep(0.2)
    logger.warning("Ray Serve did not stop within %g s; 'serve shutdown' stops it", STOP_S)


def _stopped(host: str, port: int) -> bool:
    try:
        status = serve.status()
        check_port(host, port)
    except (ServingError, RayError, RayServeException):
        return False
    return not status.applications and not status.proxies


def _wait_ready(scheme: str, address: str, port: int, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while True:
        status = serve.status().applications.get(APPLICATION)
        # With a quorum the server is ready before all members are: at the start all are waited for.
        if status is not None and status.status == "RUNNING" and _ready(scheme, address, port):
            return
        # Serve starts a failed replica several times; an error of ours comes again each time.
        if status is not None and (status.status in ("DEPLOY_FAILED", "UNHEALTHY") or _own_errors(status)):
            raise ServingError("the application could not start", _reason(status))
        if time.monotonic() > deadline:
            raise ServingError(
                f"the application was not ready after {ready_s:g} s",
                _reason(status) if status is not None else None,
                "see whether the cluster has the cores and accelerators that the members ask for",
            )
        time.sleep(0.2)


def _ready(scheme: str, address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    if scheme == "https":
        # Nothing is sent or believed: whom the certificate names is for clients to check.
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(address, port, timeout=10, context=trusting)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _own_errors(status: ApplicationStatusOverview) -> list[str]:
    """Last lines of the tracebacks that end with an error of ours."""
    return [line for line in _lines(status) if line.startswith("orchestrator.errors.")]


def _lines(status: ApplicationStatusOverview) -> list[str]:
    texts = [status.message, *(part.message for part in status.deployments.values())]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def _reason(status: ApplicationStatusOverview) -> str:
    """What Serve knows of a start that failed, without its tracebacks."""
    lines, own = _lines(status), _own_errors(status)
    unready = [
        f"{name} is {part.status.value}"
        for name, part in status.deployments.items()
        if part.status != "HEALTHY"
    ]
    if own:
        return own[-1].split(": ", 1)[-1]
    return "; ".join(unready) or (lines[-1] if lines else "no reason given")
