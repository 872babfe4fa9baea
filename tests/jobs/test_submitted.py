"""A stage as a real job: `ray start --head`, the Jobs SDK, a killed driver, and the same job once more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from orchestrator.store.store import Store
from tests.deployments.toys import IMAGES, in_process, open_store
from tests.jobs.files import column, image_file
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


def wait_for(client: JobSubmissionClient, job: str, *texts: str) -> str:
    """Its log, once that holds all texts or the job has ended."""
    while True:
        status = client.get_job_status(job)
        log: str = client.get_job_logs(job)
        if status in ENDED or all(text in log for text in texts):
            return log
        time.sleep(0.3)


def log_of(client: JobSubmissionClient, job: str) -> str:
    """Its whole log, once it succeeded."""
    log = wait_for(client, job, "no line of a log")
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    return log


def kill_driver(argument: str) -> None:
    """SIGKILL for the Python process of a job that has this argument."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if argument in words and "jobs/train.py" in words:
                    os.kill(int(entry.name), signal.SIGKILL)


def test_a_killed_job_continues_when_it_is_submitted_again(dashboard: str, tmp_path: Path) -> None:
    client, store = connect(dashboard), str(tmp_path / "store")
    network = {"factory": "mlp"}
    models = {
        "small": {"model": network, "training": {"epochs": 1}},
        "long": {"model": network, "training": {"epochs": 20, "lr": 0.01}},
    }
    file = toys.write(tmp_path / "run.yaml", models=models)
    entrypoint = f"python jobs/train.py --config {file} --store {store}"
    variables = {"ORCHESTRATOR_CACHE": str(tmp_path / "cache")}
    killed = submit(client, entrypoint, variables)
    told = wait_for(client, killed, "small: trained: ", "long: epoch 4 of 20")
    kill_driver(store)
    wait_for(client, killed, "no line of a log")
    assert client.get_job_status(killed) == JobStatus.FAILED, told
    assert "\x1b[" not in told.partition("train ")[2], "no cursor control, no colours"
    assert "long: trained: " not in told

    again = log_of(client, submit(client, entrypoint, variables))
    assert "small: finished before" in again
    assert "long: goes on after epoch " in again
    digest = Store(store, create=False).ref("toy/long")
    assert f"long: trained: {digest[:12]}" in again
    assert f"small: trained: {Store(store).ref('toy/small')[:12]}" in told


def test_parquet_files_are_answered_on_the_cluster(dashboard: str, tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    cascade = next(spec for spec in specs if spec.name == "cascade")
    store.set_ref("toy/cascade", store.put_spec(cascade))
    for number in range(2):
        image_file(tmp_path / "in" / f"{number}.parquet", IMAGES[number:])
    (tmp_path / "in" / "2.parquet").write_bytes(b"no Parquet")
    given = f"--input {tmp_path}/in --output {tmp_path}/out --store {store.root} --ignore label,number"
    client = connect(dashboard)
    job = submit(client, f"python jobs/predict.py toy/cascade {given}", {})
    told = wait_for(client, job, "no line of a log")
    assert "error: 1 of 3 files are not answered; " in told
    assert "2.parquet: cannot read as Parquet" in told
    expected = in_process(store, cascade, IMAGES).probs
    assert expected is not None
    for number in range(2):
        answers = column(tmp_path / "out" / f"{number}.parquet", "probabilities")
        np.testing.assert_allclose(answers, expected[number:], atol=1e-6)
