from __future__ import annotations

import grpc
import pytest
from ray.serve._private import replica

from deployments import doors
from deployments.doors import close_call_port
from orchestrator.errors import ServingError


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, doors.NAME, getattr(replica, doors.NAME))


def test_the_port_is_on_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def opened(_server: object, address: str) -> int:
        asked.append(address)
        return 7

    monkeypatch.setattr(replica, doors.NAME, opened)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    close_call_port()
    close_call_port()
    assert getattr(replica, doors.NAME)(grpc.Server, "[::]:0") == 7
    assert asked == ["127.0.0.1:0"]


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    close_call_port()
    with pytest.raises(ServingError, match="elsewhere than is known"):
        getattr(replica, doors.NAME)(grpc.Server, "0.0.0.0:0")
    monkeypatch.delattr(replica, doors.NAME)
    with pytest.raises(ServingError, match="in another way than is known"):
        close_call_port()
