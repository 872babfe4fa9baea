"""Send a run to a Ray cluster as a job, through the Jobs SDK."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from ray.exceptions import RayError

from orchestrator import __version__
from orchestrator.config.base import fingerprint
from orchestrator.config.run import RunConfig
from orchestrator.errors import ClusterError, ConfigError, first_line
from orchestrator.pipeline.context import STORE_VARIABLE, refuse_relative_data
from orchestrator.redact import has_password, redact
from orchestrator.upload import Upload, upload_of

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
POLL_S = 1.0
POLL_BYTES = 2**20
"""A log is fetched whole: for each of so many bytes the next look waits one interval longer."""
FOLLOW_TRIES = 120
"""Times in a row that the dashboard may fail to answer before following ends; the job goes on."""
CONNECT_TRIES = 10
"""The same at the beginning: a head that starts again answers after some seconds."""
AWAY_TRIES = 30
"""The same of a dashboard that answered once, while the job is sent."""
AWAY_S = 2.0
STOP_S = 60
"""Between SIGTERM and SIGKILL of a job that is stopped; Ray's own 3 s do not do for a run with actors."""
RUN_FILE = "orchestrator-run.yaml"
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
LOST = "LOST"
"""Status of a job that its cluster no longer knows."""

_FAILURES = (RuntimeError, ValueError, OSError, RayError)
"""What the Jobs SDK raises: its own RuntimeError, lost connections (OSError), a wrong token (RayError)."""


@dataclass(frozen=True)
class Driver:
    """Where the job's own process runs; on the head when nothing is asked for."""

    cpus: float = 0
    """Cores that Ray reserves for it as long as the job runs."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of its node, by Ray's label selectors."""

    def options(self) -> dict[str, Any]:
        """For `submit_job`."""
        found: dict[str, Any] = {"entrypoint_num_cpus": self.cpus} if self.cpus else {}
        return found | ({"entrypoint_label_selector": dict(self.labels)} if self.labels else {})


def submit_run(
    run: RunConfig,
    *,
    address: str | None,
    store: str | None,
    wait: bool,
    fresh: bool = False,
    working_dir: Path | None = None,
    driver: Driver | None = None,
    retries: int = 2,
) -> dict[str, Any]:
    """Submit a run; the job's log goes to standard error while waiting.

    The run is sent whole, so that nothing but the installed package is needed on the cluster. The job's id is
    made of the run: submitting it once more while it is on its way follows the same job, and after its end
    starts another attempt, which continues from the store.

    Args:
        run: what to do.
        address: of the dashboard.
        store: absolute path or URI that the cluster reaches.
        wait: follow the log until the job ends.
        fresh: train anew what was trained under this name with other settings.
        working_dir: a folder with code of one's own that the job can import; at most 100 MiB.
        driver: where the job's own process runs.
        retries: attempts after the first, when the cluster has lost the job or its process was killed. Needs
            `wait`. A job that ended by itself is not repeated.

    Returns:
        `submission_id` and `status`: SUBMITTED without `wait`, RUNNING after Ctrl-C; of a job that did not
        succeed also `exit_code` (None when it did not end by itself) and `reason`.

    Raises:
        ConfigError: the run file is wrong, the store or a data folder is a relative path, the store's address
            holds a password, or the working directory is too large.
        ClusterError: no dashboard answers, it refuses the job, or it stops answering while we follow.
    """
    chosen = store or os.environ.get(STORE_VARIABLE)
    _check_store(chosen)
    _refuse_passwords(run)
    refuse_relative_data(run)
    sent = None if working_dir is None else upload_of(working_dir.absolute())
    if sent is not None:
        sent.check()
    client = _client(address)
    with _packed(run, sent) as folder:
        environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        job = {
            "entrypoint": _entrypoint(fresh),
            "runtime_env": {
                "working_dir": folder,
                "env_vars": environment | ({STORE_VARIABLE: chosen} if chosen else {}),
            },
            "metadata": _metadata(run),
            **(driver or Driver()).options(),
        }
        run_id = _run_id(run, chosen, fresh, sent)
        if not wait:
            return {"submission_id": _submit(client, run_id, job), "status": "SUBMITTED"}
        return _until_it_ends(client, run_id, job, retries)


def _until_it_ends(
    client: JobSubmissionClient, run_id: str, job: dict[str, Any], retries: int
) -> dict[str, Any]:
    """Submit and follow; once more where the cluster, not the job, was at fault.

    Raises:
        ClusterError: the dashboard refuses the job, is away for long, or has lost the job too often.
    """
    for left in reversed(range(retries + 1)):
        submission = _submit(client, run_id, job)
        found = _follow(client, submission)
        if left and _killed(found):
            _say(f"{submission} ended without a result of its own ({found['reason']}); submitted again")
            continue
        if found["status"] == LOST:
            raise ClusterError(
                "the cluster does not know the job, it was started anew or has forgotten it",
                submission,
                "submit the run again: it goes on from what its store holds",
            )
        break
    return found


def _killed(found: Mapping[str, Any]) -> bool:
    """Whether the job's process was lost or killed, instead of ending or being stopped."""
    code = found.get("exit_code")
    return found["status"] == LOST or (
        found["status"] == JobStatus.FAILED.value and (code is None or int(code) < 0)
    )


def _refuse_passwords(run: RunConfig) -> None:
    """What is submitted is shown in the dashboard."""

    def visit(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(inner, f"{place}.{name}" if place else str(name))
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                visit(inner, f"{place}[{number}]")
        elif isinstance(value, str) and has_password(value):
            raise ConfigError(
                "a run file that is submitted is shown in the dashboard and must hold no password",
                place,
                "give the nodes their credentials by their environment or role",
            )

    visit(run.plain(), "")


def _check_store(store: str | None) -> None:
    if store is None:
        return
    if "://" in store:
        if has_password(store):
            raise ConfigError(
                "a store's address is shown in the dashboard and must hold no password",
                redact(store),
                "give the nodes their credentials by their environment or role",
            )
    elif not Path(store).is_absolute():
        raise ConfigError("a job's store must be an absolute path or a URI", store)


@contextmanager
def _packed(run: RunConfig, sent: Upload | None) -> Iterator[str]:
    """A folder with the run file, and the user's own code if there is some."""
    with tempfile.TemporaryDirectory() as folder:
        if sent is not None:
            sent.copy_to(Path(folder))
        text = yaml.safe_dump(run.given(), sort_keys=False)
        (Path(folder) / RUN_FILE).write_text(text, encoding="utf-8")
        yield folder


def _entrypoint(fresh: bool) -> str:
    words = ["python", "-m", "jobs.pipeline", "--config", RUN_FILE, *(["--fresh"] if fresh else [])]
    return shlex.join(words)


def _metadata(run: RunConfig) -> dict[str, str]:
    """What the dashboard shows of the job; no path, no environment, nothing secret."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        git = ""
    found = {"run": run.name, "version": __version__, "config": fingerprint(run.plain())[:16]}
    return found | ({"git": git} if git else {})


def _run_id(run: RunConfig, store: str | None, fresh: bool, sent: Upload | None) -> str:
    """Equal for equal runs into the same store with the same code."""
    code = None if sent is None else sent.digest()
    return f"{run.name}-{fingerprint([run.plain(), store, fresh, code, __version__])[:8]}"


def _client(address: str | None) -> JobSubmissionClient:
    before = os.environ.get(ADDRESS_VARIABLE)
    try:
        if address is not None:
            os.environ[ADDRESS_VARIABLE] = address  # Ray takes the variable before the argument
        return _connected(address)
    except _FAILURES as error:
        raise ClusterError(
            "no Ray dashboard answers",
            address or "(default address)",
            f"{first_line(error).rstrip('.')}; start one with 'ray start --head'",
        ) from error
    finally:
        if address is not None:
            os.environ.pop(ADDRESS_VARIABLE)
            if before is not None:
                os.environ[ADDRESS_VARIABLE] = before


def _connected(address: str | None) -> JobSubmissionClient:
    """A client, once the dashboard answers; a head that starts again takes some seconds."""
    for left in reversed(range(CONNECT_TRIES)):
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            if not left:
                raise
            if left == CONNECT_TRIES - 1:
                _say(f"no dashboard answers yet; trying for {CONNECT_TRIES * AWAY_S:.0f} s")
            time.sleep(AWAY_S)
    raise AssertionError("the last try returns or raises")


def _submit(client: JobSubmissionClient, run_id: str, job: dict[str, Any]) -> str:
    """Start the job, or find the attempt that is on its way; its id.

    Raises:
        ClusterError: the cluster refuses the job, or does not answer for long.
    """
    attempt, failed = 1, 0
    while True:
        submission = run_id if attempt == 1 else f"{run_id}-{attempt}"
        try:
            status = _status(client, submission)
            if status is None:
                client.submit_job(submission_id=submission, **job)
                return submission
            if status not in ENDED:
                _say(f"this run is on its way as {submission}; no second job is started")
                return submission
            attempt += 1
        except _FAILURES as error:
            # "already exists": an answer was lost, or another submission came first. Look again.
            failed += 1
            if failed >= AWAY_TRIES or not _passing(error):
                raise ClusterError("the cluster refused the job", first_line(error)) from error
            time.sleep(AWAY_S)


def _status(client: JobSubmissionClient, submission: str) -> JobStatus | None:
    """Of an attempt; None when the cluster does not know it."""
    try:
        status: JobStatus = client.get_job_info(submission).status
        return status
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _passing(error: Exception) -> bool:
    """Whether a later try may do better: no connection, a job agent that is not up yet, a lost answer."""
    if isinstance(error, OSError):
        return True
    told = str(error)
    return any(
        part in told for part in ("No available agent", "already exists", *map(_code, (502, 503, 504)))
    )


def _code(number: int) -> str:
    return f"status code {number}"


def _follow(client: JobSubmissionClient, submission: str) -> dict[str, Any]:
    """Copy the job's log to standard error until it ends; how it ended. Ctrl-C ends the following alone.

    A lost connection is made again, and the log goes on where it was left.

    Raises:
        ClusterError: the dashboard stopped answering, which does not touch the job.
    """
    shown, failed = 0, 0
    try:
        while True:
            try:
                details = client.get_job_info(submission)
                log = client.get_job_logs(submission)
            except _FAILURES as error:
                if _code(404) in str(error):
                    return {"submission_id": submission, "status": LOST, "reason": "the cluster has lost it"}
                failed += 1
                if failed >= FOLLOW_TRIES:
                    raise ClusterError(
                        "the dashboard stopped answering, the job may go on",
                        client.get_address(),
                        f"see 'ray job status {submission}', or submit the run again: it follows the job, or "
                        "goes on from its store",
                    ) from error
            else:
                failed = 0
                sys.stderr.write(log[shown:])
                sys.stderr.flush()
                shown = max(shown, len(log))
                if details.status in ENDED:
                    return _outcome(submission, details)
            time.sleep(POLL_S * (1 + shown // POLL_BYTES))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nno longer following; the job goes on: ray job logs -f {submission}\n")
        return {"submission_id": submission, "status": str(JobStatus.RUNNING.value)}


def _outcome(submission: str, details: JobDetails) -> dict[str, Any]:
    found = {"submission_id": submission, "status": str(details.status.value)}
    if details.status == JobStatus.SUCCEEDED:
        return found
    # Ray's message repeats the end of the log after its first sentence.
    reason = (details.message or "no reason given").partition(", last available logs")[0]
    return {**found, "exit_code": details.driver_exit_code, "reason": reason.splitlines()[0].rstrip(".")}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
