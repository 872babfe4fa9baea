"""A stage as a real job: `ray start --head`, the Jobs SDK, and the same job once more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from orchestrator.store.store import Store
from tests.pipeline import toys
from tests.pipeline.tiny import free_port
from tests.pipeline.victim import end_session

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="ends Ray's processes by /proc"),
]
ROOT = Path(__file__).parents[2]
STOP_S = 5.0
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of a head node of our own; only its own processes are ended."""
    port = free_port()
    options = {
        "port": free_port(),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "object-store-memory": 100 * 2**20,
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        line = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--temp-dir", folder]
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(
                [*line, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(STOP_S)
            except subprocess.TimeoutExpired:
                head.kill()
                head.wait()
            end_session(head.pid)


def connect(address: str) -> JobSubmissionClient:
    for _ in range(240):
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
    raise AssertionError("the dashboard does not answer")


def submit(client: JobSubmissionClient, entrypoint: str, variables: dict[str, str]) -> str:
    """Id of the job; a job agent answers some seconds after its dashboard."""
    environment = {"working_dir": str(ROOT), "env_vars": variables}
    for _ in range(60):
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(1)
    raise AssertionError("no job agent answers")


def log_of(client: JobSubmissionClient, job: str) -> str:
    """Its whole log, once it succeeded."""
    while client.get_job_status(job) not in ENDED:
        time.sleep(0.5)
    log: str = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    return log


def test_a_job_trains_and_continues(dashboard: str, tmp_path: Path) -> None:
    client, store = connect(dashboard), tmp_path / "store"
    file = toys.write(tmp_path / "run.yaml")
    entrypoint = f"python jobs/train.py --config {file} --store {store}"
    variables = {"ORCHESTRATOR_CACHE": str(tmp_path / "cache")}
    first = log_of(client, submit(client, entrypoint, variables))
    assert "small: epoch 1 of 1" in first
    assert "\x1b[" not in first.partition("train ")[2], "no cursor control, no colours"
    digest = Store(store, create=False).ref("toy/small")
    assert f"trained: {digest[:12]}" in first
    again = log_of(client, submit(client, entrypoint, variables))
    assert "small: finished before" in again
    assert "epoch" not in again
    assert Store(store).ref_history("toy/small")[-1].sequence == 1
