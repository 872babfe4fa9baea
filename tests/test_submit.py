"""`orchestrator submit` following a job, against a dashboard by script: how it ends is one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus

from orchestrator import submit
from tests.pipeline.command import Answer, command
from tests.pipeline.toys import write

ADDRESS = "http://127.0.0.1:9"
LOST = RuntimeError("Request failed with status code 404: Job toy does not exist.")
AWAY = ConnectionError("HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded")


class Dashboard:
    """Answers one look after another, the last one for ever: a status, or an error that is raised."""

    def __init__(self, *looks: JobStatus | BaseException, code: int | None = None, message: str = "") -> None:
        self.looks, self.code, self.message = list(looks), code, message
        self.job: dict[str, Any] = {}
        self.log = ""

    def submit_job(self, **job: Any) -> None:
        self.job = job

    def get_address(self) -> str:
        return ADDRESS

    def get_job_info(self, _: str) -> Any:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, BaseException):
            raise look
        self.log += f"{look.value}\n"
        return SimpleNamespace(status=look, driver_exit_code=self.code, message=self.message)

    def get_job_logs(self, _: str) -> str:
        return self.log


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(submit, "POLL_S", 0)
    return write(tmp_path / "run.yaml")


def follow(file: Path, dashboard: Dashboard, *more: str) -> Answer:
    """`orchestrator submit` with this dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submit, "_client", lambda _: dashboard)
        return command("submit", file, "--store", "/shared/store", *more)


def test_a_job_that_succeeds(file: Path) -> None:
    dashboard = Dashboard(JobStatus.PENDING, AWAY, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    found = follow(file, dashboard)
    assert found.code == 0
    assert found.err == "PENDING\nRUNNING\nSUCCEEDED\n", "each line of the log once"
    assert found.out == f"{dashboard.job['submission_id']}: SUCCEEDED\n"
    assert dashboard.job["entrypoint"] == "python -m jobs.pipeline --config run.yaml"
    assert dashboard.job["runtime_env"]["env_vars"]["ORCHESTRATOR_STORE"] == "/shared/store"


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (-9, 1), (None, 1)])
def test_a_job_that_fails(file: Path, code: int | None, expected: int) -> None:
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated):\nx\ny"
    dashboard = Dashboard(JobStatus.FAILED, code=code, message=message)
    said = follow(file, dashboard).sentence(expected)
    job = dashboard.job["submission_id"]
    assert said == (
        f"error: the job ended as FAILED: Job entrypoint command failed with exit code {code}. "
        f"'ray job logs {job}' shows its log; submitted again it goes on."
    )
    found = follow(file, dashboard, "--json")
    assert found.code == expected
    assert (found.document["status"], found.document["exit_code"]) == ("FAILED", code)


def test_a_job_that_was_stopped(file: Path) -> None:
    said = follow(file, Dashboard(JobStatus.STOPPED, message="Job was intentionally stopped.")).sentence(1)
    assert said.startswith("error: the job ended as STOPPED: Job was intentionally stopped. 'ray job logs ")


def test_a_dashboard_that_goes_away(file: Path) -> None:
    said = follow(file, Dashboard(JobStatus.RUNNING, AWAY)).sentence(1)
    assert said.startswith(f"error: the dashboard stopped answering, the job may go on: {ADDRESS}. see 'ray ")


def test_a_cluster_that_does_not_know_the_job(file: Path) -> None:
    said = follow(file, Dashboard(JobStatus.RUNNING, AWAY, LOST)).sentence(1)
    assert said.startswith("error: the cluster does not know the job, it was started anew or has forgotten")


def test_ctrl_c_ends_the_following_alone(file: Path) -> None:
    dashboard = Dashboard(JobStatus.RUNNING, KeyboardInterrupt())
    found = follow(file, dashboard, "--json")
    assert found.code == 130
    assert found.document["status"] == "RUNNING"
    assert found.err.endswith(f"the job goes on: ray job logs -f {dashboard.job['submission_id']}\n")


def test_the_address_that_is_given_holds(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv(submit.ADDRESS_VARIABLE, "http://127.0.0.1:10")
    assert f"no Ray dashboard answers: {ADDRESS}" in command("submit", file, "--address", ADDRESS).sentence(1)
    assert "http://127.0.0.1:10" in command("submit", file).sentence(1)
