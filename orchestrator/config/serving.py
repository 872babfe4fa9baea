"""How the chosen ensembles are served (how, not what: nothing here changes an answer)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Spec
from orchestrator.config.imports import ImportPath


class BreakerSettings(Settings):
    """When a member that fails is no longer asked, and when it is tried again."""

    failures: int = Field(5, ge=1, le=1000)
    """So many calls in a row that fail open it."""
    rate: float = Field(0.5, gt=0, le=1)
    """Or this share of the last `window` calls."""
    window: int = Field(20, ge=2, le=1000)
    pause_s: float = Field(1.0, gt=0)
    """Time until it is tried again; each try that fails doubles it."""
    longest_pause_s: float = Field(30.0, gt=0)


class GuardSettings(Settings):
    """How members that answer plausibly but wrongly are found: `orchestrator.ensemble.guard`."""

    every: float = Field(100_000.0, ge=100)
    """Requests between wrong ejections from one ensemble, on average at least."""
    probation_s: float | None = Field(600.0, gt=0)
    """Time after which an ejected member is asked again; each ejection doubles it. None: when told to."""


class MemberOptions(Settings):
    """How a member's deployment runs, per member: Ray's share, Serve's limits, and what failure costs."""

    replicas: int | None = Field(None, ge=1)
    """`serving.replicas` when not given."""
    cpus: float = Field(0.1, ge=0)
    """Ray CPUs that a replica reserves: bookkeeping for placement. Small, so that several ensembles fit a
    laptop; the threads that a replica computes with are the spec's."""
    gpus: float = Field(0, ge=0)
    max_ongoing_requests: int = Field(1024, ge=1)
    """Calls that one replica takes at once; they wait in its batcher."""
    max_queued_rows: int = Field(65536, ge=1)
    """Rows that wait in one replica's batcher; past them a call is refused (503)."""
    timeout_s: float | None = Field(None, gt=0)
    """Longest time for one call; never more than the request leaves it."""
    retries: int = Field(1, ge=0, le=10)
    """How often a call that fails is made again, while the request has time."""
    hedge: float = Field(0.05, ge=0, le=1)
    """Calls that may be made a second time because the first takes longer than 95 % of the calls before, as
    a share of all; with one replica none."""
    breaker: BreakerSettings | None = BreakerSettings()
    """None: it is asked whatever happened before."""


_DEFAULTS = MemberOptions()


class ServingSettings(Settings):
    host: str = "127.0.0.1"
    """Loopback unless asked."""
    port: int = Field(8000, ge=1, le=65535)
    requests: int = Field(64, ge=1)
    """Real HTTP requests that the run sends through each ensemble to compare its answers."""
    replicas: int = Field(1, ge=1)
    """Of every member that `members` does not say otherwise for."""
    members: dict[str, MemberOptions] = Field(default_factory=dict)
    """By member name; the defaults for all others."""
    max_requests: int = Field(256, ge=1)
    """Inference requests in work at once; more are refused (503)."""
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    deadline_s: float = Field(30.0, gt=0)
    """Longest time for one answer; past it the reply is 504."""
    guard: GuardSettings | None = GuardSettings()
    """For ensembles of three members or more with a quorum; None: nobody is ejected."""
    audit: float = Field(0.01, ge=0, le=1)
    """Share of the rows of a cascade with a guarantee that are held against the whole cascade's answer."""

    def options(self, member: str) -> MemberOptions:
        """Of the member of that name."""
        return self.members.get(member, _DEFAULTS)

    def replicas_of(self, member: str) -> int:
        """Replicas of the member of that name."""
        return self.options(member).replicas or self.replicas


class AppSettings(Settings):
    """Arguments of the served application (`deployments.build:app`, also in `deployments/serve.yaml`)."""

    store: str
    """Absolute path or URI of the store."""
    specs: tuple[Spec, ...] = ()
    """Ensembles given whole."""
    refs: tuple[str, ...] = ()
    """Or by name in the store, like `digits/mix`."""
    allow: tuple[ImportPath, ...] = ()
    """Import paths that members may be built from."""
    serving: ServingSettings = ServingSettings()

    @model_validator(mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("specs") and not value.get("refs"):
            raise ValueError("nothing to serve: give 'specs' or 'refs'")
        return value
