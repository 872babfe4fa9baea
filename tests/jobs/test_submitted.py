"""A stage as a real job: `ray start --head`, the Jobs SDK, a killed driver, and the same job once more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from orchestrator.store.store import Store
from tests.cluster.submitted import Submitted
from tests.deployments.toys import IMAGES, in_process, open_store
from tests.jobs.files import column, image_file
from tests.jobs.heads import Head, connect, environment
from tests.pipeline import toys
from tests.pipeline.tiny import free_port

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="ends Ray's processes by /proc"),
]
ROOT = Path(__file__).parents[2]
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of a head node of our own; only its own processes are ended."""
    port = free_port()
    with environment() as folder:
        head = Head(folder, port)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            head.stop()


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


def test_a_stopped_job_says_how_to_go_on_and_does(dashboard: str, tmp_path: Path) -> None:
    """By `orchestrator submit` with own code: followed twice, stopped as `ray job stop` does, sent again."""
    client, store = connect(dashboard), tmp_path / "store"
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_net.py").write_text(OWN_NETWORK, encoding="utf-8")
    models = {"net": {"model": {"factory": "own_net:build"}, "training": {"epochs": 400, "lr": 0.01}}}
    file = toys.write(tmp_path / "run.yaml", models=models)
    given = (file, dashboard, store, "--working-dir", str(code))
    with Submitted(*given) as run:
        run.wait_for("train", "net: epoch 2 of")
        ids = {job.submission_id or "" for job in client.list_jobs()}
        (name,) = {found for found in ids if found.startswith("toy-")}
        info = client.get_job_info(name)
        assert info.metadata is not None
        assert info.metadata["run"] == "toy"
        with Submitted(*given) as again:
            again.wait_for("train", "net: epoch 3 of")
            assert "no second job is started" in again.told
            assert client.stop_job(name)
            assert run.end() == again.end() == 1
    assert "stopped; what was finished is in the store: submit the same run again to continue" in run.told
    assert client.get_job_status(name) == JobStatus.STOPPED

    with Submitted(*given, "--json") as run:
        assert run.end() == 0, run.told
    assert "net: goes on after epoch " in run.told
    assert f'"submission_id": "{name}-2"' in run.told
    assert f"net: trained: {Store(store).ref('toy/net')[:12]}" in run.told

    with Submitted(file, dashboard, store, "--set", "models.net.model.kwargs.wide=3") as run:
        assert run.end() == 2, "its own code was not sent: the job finds its input wrong"


OWN_NETWORK = """
from torch import nn


def build(signature, wide=8):
    size = 1
    for length in signature.input_shape:
        size *= length
    return nn.Sequential(nn.Flatten(), nn.Linear(size, wide), nn.ReLU(), nn.Linear(wide, signature.outputs))
"""
