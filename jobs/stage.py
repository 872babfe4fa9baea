"""What the job scripts share: arguments, signals, exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from orchestrator.errors import OrchestratorError, of_system
from orchestrator.pipeline.run import execute_file, tune_file

_STOPPED = "stopped; what was finished is in the store: submit the same run again to continue"


def main(until: str, text: str) -> None:
    """Parse the arguments and run the pipeline up to a stage.

    Finished stages are in the store: a job that was stopped or killed continues when it is submitted again.
    """
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--config", required=True, help="run file, or 'digits' for the embedded one")
    parser.add_argument("--store", help="absolute path or URI of the store [default: $ORCHESTRATOR_STORE]")
    parser.add_argument("--data", help="folder of the run's data files")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override one setting"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="go on even where settings of a model or search changed since the last run",
    )
    if until == "search":
        parser.add_argument(
            "--stage",
            choices=("compression", "training"),
            default="compression",
            help="search compressed variants, or settings of a model's training",
        )
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("store", "overrides", "data", "fresh")}
    if getattr(arguments, "stage", None) == "training":
        work(lambda: tune_file(arguments.config, **given))
    else:
        work(lambda: execute_file(arguments.config, until=until, **given))


def work(job: Callable[[], object]) -> None:
    """Do a job's work; one sentence and an exit code instead of a traceback, also when it is stopped."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        job()
    except OrchestratorError as error:
        sys.exit(_complain(f"error: {error}", error.exit_code))
    except OSError as error:
        explained = of_system(error)
        if explained is None:
            raise
        sys.exit(_complain(f"error: {explained}", explained.exit_code))
    except KeyboardInterrupt:
        sys.exit(130)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """`ray job stop` sends SIGTERM: end like Ctrl-C, so that blocks are left in order.

    What to do is said at once: Ray kills what has not ended a few seconds later.
    """
    os.write(sys.stderr.fileno(), f"{_STOPPED}\n".encode())
    raise KeyboardInterrupt


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code
