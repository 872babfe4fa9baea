"""Secrets of the environment are in nothing that a run writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-object-store",
    "AWS_SESSION_TOKEN": "s3cr3t-of-the-session",
    "MLFLOW_TRACKING_PASSWORD": "s3cr3t-of-tracking",
    "MLFLOW_TRACKING_TOKEN": "s3cr3t-token-of-tracking",
    "RAY_AUTH_TOKEN": "s3cr3t0123456789abcdef0123456789",
    "MY_API_KEY": "s3cr3t-of-somebody-else",
}
RUN = """
name: quiet
data: {kind: embedded, limit: 300}
models:
  small: {model: {factory: mlp, kwargs: {widths: [8]}}, training: {epochs: 1}}
serving: null
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_writes_no_secret(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    key = tmp_path / "key.pem"
    environment = {
        **os.environ,
        **SECRETS,
        "RAY_AUTH_MODE": "disabled",
        "HOME": str(tmp_path / "home"),
        "ORCHESTRATOR_CACHE": str(tmp_path / "cache"),
        "ORCHESTRATOR_SIGNING_KEY": str(key),
    }
    command = [sys.executable, "-m", "orchestrator"]
    subprocess.run([*command, "keys", "signing", "--file", str(key)], env=environment, check=True)
    done = subprocess.run(
        [*command, "train", str(tmp_path / "run.yaml"), "--store", str(tmp_path / "runs/store")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    secrets = [secret.encode() for secret in SECRETS.values()]
    secrets += [line.encode() for line in key.read_text().splitlines() if not line.startswith("-")]
    said = (done.stdout + done.stderr).encode()
    assert not any(secret in said for secret in secrets)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != key]
    assert len(files) > 5
    assert list((tmp_path / "runs/store/signatures").rglob("*.json")), "it was signed"
    for path in files:
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets), path
