"""HAProxy's configuration, as this Ray writes it, with all but the front on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from orchestrator import haproxy
from orchestrator.errors import ServingError

PROGRAM = (sys.executable, "-m", "orchestrator.haproxy")


class Values(dict[str, object]):
    """Any value that the template asks for."""

    def __missing__(self, key: str) -> object:
        return 1


def written(host: str = "127.0.0.1") -> str:
    """What Ray's own template gives; values that do not matter here are 1."""
    known = {"frontend_host": host, "frontend_port": 8000, "metrics_port": 9101, "stats_port": 8404}
    environment = Environment()
    environment.filters["haproxy_fmt"] = str
    return environment.from_string(HAPROXY_CONFIG_TEMPLATE).render(
        config=Values(known | {"grpc_enabled": False}),
        backends=[],
        backends_with_health_config=[],
        route_info=Values(),
        healthz_rules="",
    )


def binds(configuration: str) -> list[str]:
    lines = (line.split() for line in configuration.splitlines())
    return [words[1] for words in lines if words[:1] == ["bind"]]


def test_rays_own_configuration_has_open_listeners_that_are_closed() -> None:
    found = written()
    assert binds(found) == [":9101", "127.0.0.1:8000", "*:8404"]
    closed = haproxy.closed(found)
    assert binds(closed) == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]
    assert "mode 666" in found
    assert "mode 666" not in closed


def test_the_front_listens_where_the_user_says() -> None:
    assert binds(haproxy.closed(written("*"))) == ["127.0.0.1:9101", "*:8000", "127.0.0.1:8404"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bind :9101", "bind :9101 ssl crt x"),
        ("listen stats", "listen statistics"),
        ("mode 666", "mode 777"),
        ("bind *:8404", "# nothing"),
        ("listen stats", "listen more\n  bind *:1\nlisten stats"),
        (
            "frontend http_frontend",
            "frontend http_frontend\n    bind 127.0.0.1:1\npeers others\n    bind *:10000",
        ),
        ("frontend http_frontend", "frontend http_frontend\n  listen other\n    bind *:10000"),
        ("frontend http_frontend", "frontend http_frontend\n  peers others\n    bind *:10000"),
        ("listen stats", "unheard-of section\nlisten stats"),
    ],
)
def test_another_template_is_refused(old: str, new: str) -> None:
    assert old in written()
    with pytest.raises(ServingError, match="in another way than is known"):
        haproxy.closed(written().replace(old, new))


def test_the_program_that_ray_starts_refuses_too_and_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("frontend other\n    bind *:1\n", encoding="utf-8")
    done = subprocess.run([*PROGRAM, "-db", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "in another way than is known: frontend other: bind *:1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_program_becomes_haproxy(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    lines = (
        "global",
        f"    stats socket {tmp_path}/a.sock mode 666 level admin",
        "defaults",
        "    mode http",
        "    timeout connect 1s",
        "    timeout client 1s",
        "    timeout server 1s",
        "frontend prometheus",
        "    bind :1",
        "listen stats",
        "    bind *:2",
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run([*PROGRAM, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert binds(path.read_text(encoding="utf-8")) == ["127.0.0.1:1", "127.0.0.1:2"]
