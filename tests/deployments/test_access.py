"""Keys, scopes, rates and closed doors, in front of the whole HTTP application."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from deployments.http import access
from deployments.http.access import ADMIN, OPEN, Rates, from_here
from orchestrator import keys
from orchestrator.config.access import AccessSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ConfigError
from tests.deployments.served import MIX, application

ROW = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [7] * 64}
INFER = "/v2/models/mix/infer"
REMOTE = ("192.0.2.7", 50000)
"""An address of another machine."""
DATA = ["/v2", "/v2/models/mix", "/v2/models/mix/ready", "/status", "/metrics", "/v2/none", "/openapi.json"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def app(**settings: Any) -> Any:
    return application(ServingSettings(access=AccessSettings(**settings)), (MIX,))


def ask(found: Any, method: str, path: str, *, client: Any = REMOTE, **more: Any) -> httpx.Response:
    async def test() -> httpx.Response:
        transport = httpx.ASGITransport(found, client=client, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1") as http:
            return await http.request(method, path, **more)

    return asyncio.run(asyncio.wait_for(test(), 10))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(reply: httpx.Response, status: int, says: str) -> None:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert says in reply.json()["error"]


@pytest.mark.parametrize("path", DATA)
def test_every_data_route_asks_for_a_key(file: Path, path: str) -> None:
    token = keys.add(file, "ann", "data")
    found = app(keys=str(file))
    for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {token}"}, bearer(token[:-1])):
        reply = ask(found, "GET", path, headers=headers)
        refused(reply, 401, "needs a valid API key")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert ask(found, "GET", path, headers=bearer(token)).status_code in (200, 404)
    assert ask(found, "GET", path, headers={"X-API-Key": token}).status_code in (200, 404)


def test_a_key_lets_infer(file: Path) -> None:
    token = keys.add(file, "ann", "data")
    found = app(keys=str(file))
    refused(ask(found, "POST", INFER, json={"inputs": [ROW]}), 401, "API key")
    assert ask(found, "POST", INFER, json={"inputs": [ROW]}, headers=bearer(token)).status_code == 200


def test_loopback_needs_the_keys_too_once_there_are_some(file: Path) -> None:
    keys.add(file, "ann", "data")
    refused(ask(app(keys=str(file)), "GET", "/v2", client=("127.0.0.1", 5)), 401, "API key")


@pytest.mark.parametrize("path", OPEN)
def test_what_load_balancers_and_browsers_need_is_open(file: Path, path: str) -> None:
    keys.add(file, "ann", "data")
    assert ask(app(keys=str(file)), "GET", path).status_code == 200


@pytest.mark.parametrize("prefix", ADMIN)
def test_admin_routes_need_the_scope(file: Path, prefix: str) -> None:
    data, admin = keys.add(file, "ann", "data"), keys.add(file, "root", "admin")
    found = app(keys=str(file))
    path = f"{prefix}x"
    refused(ask(found, "POST", path), 401, "API key")
    refused(ask(found, "POST", path, headers=bearer(data)), 403, "scope admin")
    assert ask(found, "POST", path, headers=bearer(admin)).status_code == 404
    assert ask(found, "GET", "/v2", headers=bearer(admin)).status_code == 200


def test_a_rate_is_each_keys_own(file: Path) -> None:
    ann, bob = keys.add(file, "ann", "data"), keys.add(file, "bob", "data")
    found = app(keys=str(file), rate_per_s=0.1, burst=2)
    statuses = [ask(found, "GET", "/v2", headers=bearer(ann)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    reply = ask(found, "GET", "/v2", headers=bearer(ann))
    refused(reply, 429, "too many requests")
    assert 1 <= int(reply.headers["retry-after"]) <= 10
    assert ask(found, "GET", "/v2", headers=bearer(bob)).status_code == 200


def test_tokens_come_back_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("deployments.http.access.time.monotonic", lambda: now)
    rates = Rates(per_s=4.0, burst=2)
    assert [rates.take("a") for _ in range(3)] == [0.0, 0.0, pytest.approx(0.25)]
    now += 0.25
    assert [rates.take("a") for _ in range(2)] == [0.0, pytest.approx(0.25)]
    now += 1000.0  # no more than the burst
    assert [rates.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_a_revoked_key_is_refused_by_a_running_server(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    ann = keys.add(file, "ann", "data")
    found = app(keys=str(file))
    assert ask(found, "GET", "/v2", headers=bearer(ann)).status_code == 200
    keys.revoke(file, "ann")
    refused(ask(found, "GET", "/v2", headers=bearer(ann)), 401, "API key")
    bob = keys.add(file, "bob", "data")
    assert ask(found, "GET", "/v2", headers=bearer(bob)).status_code == 200
    file.unlink()
    refused(ask(found, "GET", "/v2", headers=bearer(bob)), 401, "API key")


def test_without_keys_only_this_machine_is_answered() -> None:
    found = app()
    assert ask(found, "GET", "/v2", client=("127.0.0.1", 5)).status_code == 200
    refused(ask(found, "GET", "/v2"), 403, "only requests of this machine")
    forwarded = {"X-Forwarded-For": "192.0.2.7"}
    refused(ask(found, "GET", "/v2", client=("127.0.0.1", 5), headers=forwarded), 403, "only requests")
    assert ask(app(open=True), "GET", "/v2").status_code == 200


@pytest.mark.parametrize(
    ("client", "server", "here"),
    [
        (("127.0.0.1", 1), ("127.0.0.1", 2), True),
        (("::1", 1), ("::1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.7", 1), ("192.0.2.1", 2), False),
        (("testclient", 1), ("192.0.2.1", 2), False),
        (None, ("192.0.2.1", 2), False),
    ],
)
def test_who_is_this_machine(client: Any, server: Any, here: bool) -> None:
    assert from_here({"type": "http", "headers": [], "client": client, "server": server}) is here


@pytest.mark.parametrize(
    ("headers", "here"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "https://elsewhere.example"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "rebound.example:8000"}, False),
        ({"host": "rebound.example:8000", "origin": "http://rebound.example:8000"}, False),
        ({"host": "[::1"}, False),
    ],
)
def test_pages_of_other_sites_do_not_speak_for_this_machine(headers: dict[str, str], here: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    found = {"type": "http", "headers": raw, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
    assert from_here(found) is here


def test_scopes_hold_where_the_application_is_mounted_below_a_path(file: Path) -> None:
    data = keys.add(file, "ann", "data")
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "root_path": "/below",
        "path": "/below/admin/x",
        "headers": [(b"x-api-key", data.encode())],
        "client": REMOTE,
        "server": REMOTE,
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(keys=str(file))(scope, None, send))
    assert sent[0]["status"] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_hosts_need_keys(host: str) -> None:
    with pytest.raises(ValidationError, match="a file of API keys"):
        ServingSettings(host=host)
    assert ServingSettings(host=host, access=AccessSettings(keys="/keys")).host == host
    assert ServingSettings(host=host, access=AccessSettings(open=True)).host == host
    local = ServingSettings(host=host, access=AccessSettings(keys="/keys")).local()
    assert (local.host, local.access.keys) == ("127.0.0.1", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert ServingSettings(host=host).local().host == host


def test_a_server_does_not_start_without_its_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file of API keys cannot be read"):
        app(keys=str(tmp_path / "none"))


def test_errors_tell_nothing_of_the_inside(file: Path) -> None:
    """No path, no traceback, no module: whatever goes wrong on whatever route."""
    token = keys.add(file, "ann", "data")

    answers = []
    failing = application(ServingSettings(access=AccessSettings(keys=str(file))), (MIX,), deep={"fails": 1.0})
    for method, path in [
        *(("GET", path) for path in ("/v2/nothing", "/v2/models/other", "/../etc/passwd", "/status/x")),
        *(("POST", path) for path in ("/status", "/metrics", "/", INFER)),
    ]:
        answers.append(ask(failing, method, path, headers=bearer(token), content=b"{"))
    answers.append(ask(failing, "POST", INFER, headers=bearer(token), json={"inputs": [ROW]}))
    assert answers[-1].status_code == 503
    for answer in answers:
        assert answer.status_code >= 400
        assert list(answer.json()) == ["error"]
        for word in ("Traceback", "File ", ".py", str(file), str(Path.cwd()), token):
            assert word not in answer.text


def test_time_does_not_depend_on_which_key_is_right() -> None:
    """All keys are looked at, whichever is the right one."""
    found = [keys.Key(f"k{number}", "data", keys._digest(str(number))) for number in range(400)]

    def spent(token: str) -> float:
        times = []
        for _ in range(15):
            started = time.perf_counter()
            keys.find(found, token)
            times.append(time.perf_counter() - started)
        return min(times)

    ratio = spent("0") / spent("399")
    assert 0.5 < ratio < 2.0


def test_a_key_file_that_could_not_be_read_is_read_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    keys.add(path, "ann", "data")
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    file = access.KeyFile(path)
    token = keys.add(path, "bob", "data")

    def refused(_path: Path) -> tuple[keys.Key, ...]:
        raise ConfigError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "read", refused)
        assert file.find(token) is None
    assert file.find(token) is not None
