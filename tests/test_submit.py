"""`orchestrator submit` following a job, against a dashboard by script: how it ends is one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus

from orchestrator import submit
from orchestrator.config.load import load_run
from tests.architecture.modules import ROOT
from tests.pipeline.command import Answer, command
from tests.pipeline.toys import write

ADDRESS = "http://127.0.0.1:9"
LOST = RuntimeError("Request failed with status code 404: Job toy does not exist.")
AMAZON = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AWAY = ConnectionError("HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded")


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_jobs_run_file_means_what_the_users_means(file: Path) -> None:
    """A member that is written out whole, with its defaults, would say more than the user did."""
    run = load_run(file, [])
    with submit._packed(run, None) as folder:
        sent = load_run(Path(folder) / submit.RUN_FILE, [])
    assert sent == run
    assert sent.given() == run.given()


class Dashboard:
    """Answers one look after another, the last one for ever: a status, or an error that is raised."""

    def __init__(self, *looks: JobStatus | BaseException, code: int | None = None, message: str = "") -> None:
        self.looks, self.code, self.message = list(looks), code, message
        self.jobs: dict[str, dict[str, Any]] = {}
        self.log = ""
        self.refusals: list[Exception] = []
        """What the next submissions meet; the job is there nevertheless after "already exists"."""

    @property
    def job(self) -> dict[str, Any]:
        return list(self.jobs.values())[-1]

    def submit_job(self, **job: Any) -> None:
        job["sent"] = sorted(path.name for path in Path(job["runtime_env"]["working_dir"]).iterdir())
        if self.refusals:
            raise self.refusals.pop(0)
        self.jobs[job["submission_id"]] = job

    def get_address(self) -> str:
        return ADDRESS

    def get_job_info(self, submission: str) -> Any:
        if submission not in self.jobs:
            raise LOST
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
    monkeypatch.setattr(submit, "AWAY_S", 0)
    return write(tmp_path / "run.yaml")


def follow(file: Path, dashboard: Dashboard, *more: str) -> Answer:
    """`orchestrator submit` with this dashboard; without a second attempt, if nothing else is said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submit, "_client", lambda _: dashboard)
        more = more if "--retries" in more else (*more, "--retries", "0")
        return command("submit", file, "--store", "/shared/store", *more)


def test_a_job_that_succeeds(file: Path) -> None:
    dashboard = Dashboard(JobStatus.PENDING, AWAY, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    found = follow(file, dashboard)
    assert found.code == 0
    assert found.err == "PENDING\nRUNNING\nSUCCEEDED\n", "each line of the log once"
    assert found.out == f"{dashboard.job['submission_id']}: SUCCEEDED\n"
    assert dashboard.job["entrypoint"] == "python -m jobs.pipeline --config orchestrator-run.yaml"
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
    assert file.exists()
    assert f"no Ray dashboard answers: {ADDRESS}" in command("submit", file, "--address", ADDRESS).sentence(1)
    assert "http://127.0.0.1:10" in command("submit", file).sentence(1)


def test_the_id_is_that_of_the_run(file: Path) -> None:
    """Equal runs have equal ids, whenever they are sent; another store, code or setting is another run."""
    ids = []
    for more in ((), (), ("--set", "seed=5"), ("--fresh",)):
        dashboard = Dashboard(JobStatus.SUCCEEDED)
        follow(file, dashboard, *more)
        ids += list(dashboard.jobs)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(name.startswith("toy-") for name in ids)


def test_metadata_tells_the_run_and_no_path(file: Path) -> None:
    dashboard = Dashboard(JobStatus.SUCCEEDED)
    follow(file, dashboard)
    metadata = dashboard.job["metadata"]
    assert {"run", "version", "config"} <= metadata.keys()
    assert metadata["run"] == "toy"
    assert not [value for value in metadata.values() if "/" in value]
    assert dashboard.job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


def test_a_run_that_is_on_its_way_is_followed(file: Path) -> None:
    dashboard = Dashboard(JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    follow(file, dashboard, "--no-wait")
    (name,) = dashboard.jobs
    found = follow(file, dashboard)
    assert found.code == 0
    assert f"this run is on its way as {name}; no second job is started" in found.err
    assert list(dashboard.jobs) == [name]


def test_after_its_end_another_attempt_starts(file: Path) -> None:
    dashboard = Dashboard(JobStatus.FAILED, code=1, message="Job entrypoint command failed")
    for attempt in ("", "-2", "-3"):
        found = follow(file, dashboard, "--json").document
        assert found["submission_id"] == f"{next(iter(dashboard.jobs))}{attempt}"


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
        RuntimeError("Request failed with status code 503: Service Unavailable"),
    ],
    ids=["away", "agent", "503"],
)
def test_a_head_that_is_briefly_away(file: Path, error: Exception) -> None:
    dashboard = Dashboard(JobStatus.SUCCEEDED)
    dashboard.refusals = [error] * 3
    assert follow(file, dashboard).code == 0
    dashboard = Dashboard(JobStatus.SUCCEEDED)
    dashboard.refusals = [error] * 100
    assert "the cluster refused the job" in follow(file, dashboard).sentence(1)


def test_a_lost_answer_starts_no_second_job(file: Path) -> None:
    """The job was accepted, but the answer did not come: the next look finds it."""

    class Lossy(Dashboard):
        def submit_job(self, **job: Any) -> None:
            super().submit_job(**job)
            if len(self.jobs) == 1:
                raise AWAY

    dashboard = Lossy(JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    assert follow(file, dashboard).code == 0
    assert len(dashboard.jobs) == 1


def test_a_real_refusal_is_told_at_once(file: Path) -> None:
    dashboard = Dashboard(JobStatus.SUCCEEDED)
    dashboard.refusals = [RuntimeError("Request failed with status code 400: bad runtime_env"), AWAY]
    assert "status code 400: bad runtime_env" in follow(file, dashboard).sentence(1)
    assert len(dashboard.refusals) == 1


@pytest.mark.parametrize(
    ("look", "code"),
    [(LOST, None), (JobStatus.FAILED, -9), (JobStatus.FAILED, None)],
    ids=["lost", "killed", "node"],
)
def test_a_job_that_the_cluster_lost_is_sent_again(file: Path, look: Any, code: int | None) -> None:
    dashboard = Dashboard(JobStatus.RUNNING, look, JobStatus.SUCCEEDED, code=code, message="gone")
    if look is LOST:

        class Forgetful(Dashboard):
            def get_job_info(self, submission: str) -> Any:
                found = super().get_job_info(submission)
                if self.log.count("RUNNING") == 1:
                    self.jobs.clear()
                    self.log += "RUNNING\n"
                    raise LOST
                return found

        dashboard = Forgetful(JobStatus.RUNNING, JobStatus.SUCCEEDED)
    else:
        dashboard.looks = [JobStatus.RUNNING, look, look, JobStatus.SUCCEEDED]
    found = follow(file, dashboard, "--retries", "1")
    assert found.code == 0, found.err
    assert "ended without a result of its own" in found.err


@pytest.mark.parametrize("status", [JobStatus.STOPPED, JobStatus.FAILED])
def test_a_job_that_ended_by_itself_is_not_sent_again(file: Path, status: JobStatus) -> None:
    dashboard = Dashboard(status, code=1, message="x")
    assert follow(file, dashboard, "--retries", "5").code == 1
    assert len(dashboard.jobs) == 1


def test_code_of_ones_own_is_sent_with_it(file: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "own.py").write_text("x = 1")
    (code / ".gitignore").write_text("*.yaml")
    dashboard = Dashboard(JobStatus.SUCCEEDED)
    given = ("--working-dir", str(code), "--driver-cpus", "1", "--driver-label", "zone=a")
    assert follow(file, dashboard, *given).code == 0
    assert dashboard.job["sent"] == ["orchestrator-run.yaml", "own.py"]
    assert dashboard.job["entrypoint_num_cpus"] == 1
    assert dashboard.job["entrypoint_label_selector"] == {"zone": "a"}
    with (code / "large.bin").open("wb") as large:
        large.truncate(200 * 2**20)
    said = follow(file, dashboard, "--working-dir", str(code)).sentence(2)
    assert "the working directory has 200.0 MiB" in said
    assert "large.bin 200.0 MiB" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--store", "runs/store"), "a job's store must be an absolute path or a URI: runs/store"),
        (("--store", "s3://me:word@host/bucket"), "must hold no password: s3://[removed]@host/bucket"),
        (
            ("--store", f"s3://AKIAIOSFODNN7EXAMPLE:{AMAZON}@host/b"),
            "must hold no password: s3://[removed]@h",
        ),
        (("--set", "tracking.uri=http://me:word@host", "--store", "/s"), "a run file must hold no password"),
        (
            (
                "--set",
                'data={kind: custom, dataset: "a:b", kwargs: {at: "pg://a:word@b"}}',
                "--store",
                "/s",
            ),
            "must hold no password: data.kwargs.at",
        ),
    ],
    ids=["relative", "password", "slashes", "tracking", "elsewhere"],
)
def test_what_must_not_be_sent(file: Path, given: tuple[str, ...], said: str) -> None:
    told = command("submit", file, *given).sentence(2)
    assert said in told
    assert "word@" not in told
    assert AMAZON.rpartition("/")[2] not in told
