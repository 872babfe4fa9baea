from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from deployments import local
from deployments.local import _reason, check_port
from orchestrator.config.access import TlsSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ConfigError, PortInUseError, ServingError


def status(message: str, **deployments: tuple[str, str]) -> ApplicationStatusOverview:
    parts = {
        name: DeploymentStatusOverview(
            status=DeploymentStatus(state),
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={},
            message=text,
        )
        for name, (state, text) in deployments.items()
    }
    return ApplicationStatusOverview(ApplicationStatus.DEPLOYING, message, 0.0, parts)


def test_a_port_that_is_taken_free_or_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            check_port("127.0.0.1", port)
        assert caught.value.exit_code == 2
        assert str(caught.value).endswith(f"127.0.0.1:{port}. stop it or choose another port.")
        with pytest.raises(PortInUseError):
            check_port("0.0.0.0", port)
    check_port("127.0.0.1", port)
    with pytest.raises(ServingError, match="cannot listen"):
        check_port("192.0.2.1", port)
    with pytest.raises(ServingError, match="cannot listen"):
        check_port("no.such.host.invalid", port)


def test_the_reason_is_our_own_error_not_a_traceback() -> None:
    error = "orchestrator.errors.CorruptArtifactError: weights are damaged. do x."
    text = f"failed 3 times\nTraceback\n  File x\n{error}"
    assert _reason(status("", cnn=("DEPLOY_FAILED", text))) == "weights are damaged. do x."


def test_without_an_error_the_reason_is_who_is_missing() -> None:
    found = status("", cnn=("UPDATING", "waiting for 1 GPU"), mlp=("HEALTHY", ""))
    assert _reason(found) == "cnn is UPDATING"
    assert _reason(status("it\nbroke")) == "broke"


@pytest.mark.parametrize("text", [None, "not a certificate"])
def test_tls_files_that_cannot_be_used_are_told_before_ray_is_asked(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "certificate.pem"
    if text is not None:
        path.write_text(text)
    serving = ServingSettings(tls=TlsSettings(certificate=str(path), key=str(path)))
    with pytest.raises(ConfigError, match="the TLS files cannot be used"):
        local._check_files(serving)
