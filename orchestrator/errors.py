"""The error tree: every error says what was wrong, the value, and what to do about it.

`InputError` and its children are the user's to mend (exit code 2); all others are failures of the work
itself (exit code 1). Every class takes the same three plain arguments and passes them all to
`Exception`, so that it survives pickling between processes.
"""

from __future__ import annotations

import errno


class OrchestratorError(Exception):
    """Base of all errors that are shown as one sentence instead of a traceback."""

    exit_code = 1

    def __init__(self, what: str, value: object = None, fix: str = "") -> None:
        super().__init__(what, None if value is None else str(value), fix)
        self.what = what
        self.value = None if value is None else str(value)
        self.fix = fix

    def __str__(self) -> str:
        head = self.what if self.value is None else f"{self.what}: {self.value}"
        return f"{head}. {self.fix}." if self.fix else head


class InputError(OrchestratorError):
    """The user's input is wrong; nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """The run file or an override is not valid."""


class DataError(InputError):
    """The data is missing, unreadable, or not what the run file says."""


class ModelError(InputError):
    """A model cannot be built from its settings, or its factory is not allowed."""


class ResourceError(InputError):
    """The cluster can never satisfy the resources that were asked for."""


class StoreError(OrchestratorError):
    """The store cannot be used."""


class ForeignStoreError(StoreError):
    """The folder is not a store, or one of another schema."""


class StoreLockedError(StoreError):
    """Another live process holds what this one needs."""


class CorruptArtifactError(StoreError):
    """A stored file does not match its recorded digest."""


class UnsignedError(CorruptArtifactError):
    """No trusted key signed what was to be loaded."""


class NotFoundError(StoreError):
    """No artifact, ref or record of that name."""

    exit_code = 2


class RefConflictError(StoreError):
    """Another writer moved the ref first."""


class DiskFullError(StoreError):
    """No space is left; what was finished before is intact."""


class TrainingError(OrchestratorError):
    """A training run failed after its retries."""


class CompressionError(OrchestratorError):
    """A compression step cannot be applied, or would not do what it promises."""


class PlanError(CompressionError):
    """The steps of a plan are out of order."""

    exit_code = 2


class ExecutionError(OrchestratorError):
    """An artifact cannot run in the asked execution on this machine."""


class UnavailableError(ExecutionError):
    """This machine lacks what the execution needs; the artifact is not to blame."""


class SearchError(OrchestratorError):
    """The search could not produce a front."""


class EnsembleError(OrchestratorError):
    """An ensemble cannot be fitted or evaluated."""


class QuorumError(EnsembleError):
    """Too few members answered."""


class ClusterError(OrchestratorError):
    """Ray could not be started or joined."""


class ServingError(OrchestratorError):
    """The served application failed."""


class PortInUseError(ServingError):
    """Another process listens on the port."""

    exit_code = 2


class OverloadedError(ServingError):
    """More requests are waiting than may; try again later (HTTP 503)."""

    retry_after_s: float | None = None
    """When it is worth trying again, where that is known."""

    @classmethod
    def after(cls, retry_after_s: float, what: str, value: object) -> OverloadedError:
        """One that says when to try again."""
        error = cls(what, value, f"try again in {max(retry_after_s, 0.1):.1f} s")
        error.retry_after_s = retry_after_s
        return error


class ReleaseChangedError(OverloadedError):
    """Another release took over, which encodes what clients send in another way; ask again (HTTP 503)."""


class DeadlineError(ServingError):
    """No answer within the time allowed (HTTP 504)."""


class MemberFailedError(ServingError):
    """A member of an ensemble gave no valid answer (HTTP 503)."""


class DiffersError(ServingError):
    """Served answers are not the in-process answers."""


def of_system(error: OSError) -> OrchestratorError | None:
    """The error for a file system's refusal that no closer code explained; None when it is none.

    Sockets and other machinery raise `OSError` as well, but those name no file.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no space is left on the disk", error.filename, "free some and run the same command again"
        )
    if error.filename is None:
        return None
    return OrchestratorError(
        error.strerror or type(error).__name__, error.filename, "check the path and who may write there"
    )


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the rest of its story."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def last_line(text: object) -> str:
    """The end of a text that may hold whole tracebacks: their last line says what happened."""
    lines = str(text).strip().splitlines()
    return lines[-1].strip()[:300] if lines else type(text).__name__
