"""Send a run to a Ray cluster as a job, through the Jobs SDK."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
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

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
POLL_S = 1.0
FOLLOW_TRIES = 30
"""Times in a row that the dashboard may fail to answer before following ends; the job goes on."""
START_TRIES = 5
"""A cluster's job agent answers some seconds after its dashboard does."""

_FAILURES = (RuntimeError, ValueError, OSError, RayError)
"""What the Jobs SDK raises: its own RuntimeError, lost connections (OSError), a wrong token (RayError)."""


def submit_run(
    run: RunConfig, *, address: str | None, store: str | None, wait: bool, fresh: bool = False
) -> dict[str, Any]:
    """Submit a run; the job's log goes to standard error while waiting.

    The run is sent whole, so that nothing but the installed package is needed on the cluster. Submitting the
    same run again continues it from the store.

    Args:
        run: what to do.
        address: of the dashboard.
        store: absolute path or URI that the cluster reaches.
        wait: follow the log until the job ends.
        fresh: train anew what was trained under this name with other settings.

    Returns:
        `submission_id` and `status`: SUBMITTED without `wait`, RUNNING after Ctrl-C; of a job that did not
        succeed also `exit_code` (None when it did not end by itself) and `reason`.

    Raises:
        ConfigError: the run file is wrong, or the store or a data folder is a relative path.
        ClusterError: no dashboard answers, it refuses the job, or it stops answering while we follow.
    """
    chosen = store or os.environ.get(STORE_VARIABLE)
    if chosen is not None and "://" not in chosen and not Path(chosen).is_absolute():
        raise ConfigError("a job's store must be an absolute path or a URI", chosen)
    refuse_relative_data(run)
    client = _client(address)
    with tempfile.TemporaryDirectory() as folder:
        text = yaml.safe_dump(run.plain(), sort_keys=False)
        (Path(folder) / "run.yaml").write_text(text, encoding="utf-8")
        environment = {"PYTHONUNBUFFERED": "1"} | ({STORE_VARIABLE: chosen} if chosen else {})
        submission = f"{run.name}-{fingerprint(run.plain())[:8]}-{int(time.time())}"
        entrypoint = [
            "python",
            "-m",
            "jobs.pipeline",
            "--config",
            "run.yaml",
            *(["--fresh"] if fresh else []),
        ]
        job = {
            "entrypoint": shlex.join(entrypoint),
            "submission_id": submission,
            "runtime_env": {"working_dir": folder, "env_vars": environment},
            "metadata": {"run": run.name, "version": __version__},
        }
        _submit(client, job)
    if not wait:
        return {"submission_id": submission, "status": "SUBMITTED"}
    return _follow(client, submission)


def _client(address: str | None) -> JobSubmissionClient:
    before = os.environ.get(ADDRESS_VARIABLE)
    try:
        if address is not None:
            os.environ[ADDRESS_VARIABLE] = address  # Ray takes the variable before the argument
        return JobSubmissionClient(address)
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


def _submit(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    for left in reversed(range(START_TRIES)):
        try:
            client.submit_job(**job)
            return
        except _FAILURES as error:
            if left == 0 or "No available agent" not in str(error):
                raise ClusterError("the cluster refused the job", first_line(error)) from error
            time.sleep(2.0)


def _follow(client: JobSubmissionClient, submission: str) -> dict[str, Any]:
    """Copy the job's log to standard error until it ends; how it ended. Ctrl-C ends the following alone.

    Raises:
        ClusterError: the dashboard stopped answering, which does not touch the job, or has lost the job.
    """
    shown, failed = 0, 0
    try:
        while True:
            try:
                details = client.get_job_info(submission)
                log = client.get_job_logs(submission)
            except _FAILURES as error:
                failed += 1
                _give_up(error, failed, client.get_address(), submission)
            else:
                failed = 0
                sys.stderr.write(log[shown:])
                sys.stderr.flush()
                shown = len(log)
                if details.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
                    return _outcome(submission, details)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nno longer following; the job goes on: ray job logs -f {submission}\n")
        return {"submission_id": submission, "status": str(JobStatus.RUNNING.value)}


def _give_up(error: Exception, failed: int, address: str, submission: str) -> None:
    """Raise when waiting longer would not help."""
    if "status code 404" in str(error):
        raise ClusterError(
            "the cluster does not know the job, it was started anew or has forgotten it",
            submission,
            "submit the run again: it goes on from what its store holds",
        ) from error
    if failed >= FOLLOW_TRIES:
        raise ClusterError(
            "the dashboard stopped answering, the job may go on",
            address,
            f"see 'ray job status {submission}', or submit the run again: it goes on from its store",
        ) from error


def _outcome(submission: str, details: JobDetails) -> dict[str, Any]:
    found = {"submission_id": submission, "status": str(details.status.value)}
    if details.status == JobStatus.SUCCEEDED:
        return found
    # Ray's message repeats the end of the log after its first sentence.
    reason = (details.message or "no reason given").partition(", last available logs")[0]
    return {**found, "exit_code": details.driver_exit_code, "reason": reason.splitlines()[0].rstrip(".")}
