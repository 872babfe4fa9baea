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
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from orchestrator import __version__
from orchestrator.config.base import fingerprint
from orchestrator.config.run import RunConfig
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.pipeline.context import STORE_VARIABLE

POLL_S = 1.0
START_TRIES = 5
"""A cluster's job agent answers some seconds after its dashboard does."""


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

    Raises:
        ConfigError: the run file is wrong, or the store is a relative path.
        ClusterError: no dashboard answers, or it refuses the job.
    """
    chosen = store or os.environ.get(STORE_VARIABLE)
    if chosen is not None and "://" not in chosen and not Path(chosen).is_absolute():
        raise ConfigError("a job's store must be an absolute path or a URI", chosen)
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
    return {"submission_id": submission, "status": _follow(client, submission)}


def _client(address: str | None) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(
            "no Ray dashboard answers",
            address or "(default address)",
            f"{reason}; start one with 'ray start --head'",
        ) from error


def _submit(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    for left in reversed(range(START_TRIES)):
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if left == 0 or "No available agent" not in str(error):
                raise ClusterError("the cluster refused the job", str(error).splitlines()[0]) from error
            time.sleep(2.0)


def _follow(client: JobSubmissionClient, submission: str) -> str:
    """Copy the job's log to standard error until it ends; its last status."""
    shown = 0
    while True:
        status = client.get_job_status(submission)
        log = client.get_job_logs(submission)
        sys.stderr.write(log[shown:])
        sys.stderr.flush()
        shown = len(log)
        if status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
            return str(status.value)
        time.sleep(POLL_S)
