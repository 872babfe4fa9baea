"""How the chosen ensembles are served (how, not what: nothing here changes an answer)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.access import AccessSettings, TlsSettings, is_loopback
from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Spec
from orchestrator.config.imports import ImportPath
from orchestrator.config.release import FeedbackSettings

Placement = Literal["fused", "distributed"]
"""In the process that also takes the requests, or as a deployment of its own."""


class Autoscaling(Settings):
    """Serve's autoscaling of a member's replicas."""

    min_replicas: int = Field(1, ge=0)
    """0: none while nobody asks; the first request then waits for a start."""
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: float = Field(2.0, gt=0)
    """Calls in work and waiting that one replica should have."""
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


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
    """Time after which an ejected member is asked again; each ejection doubles it. None: not before the
    ensemble is loaded anew, with its next release or start."""


class MemberOptions(Settings):
    """How a member's deployment runs, per member: Ray's share, Serve's limits, and what failure costs."""

    placement: Placement | None = None
    """`serving.placement` when not given."""
    replicas: int | None = Field(None, ge=1)
    """`serving.replicas` when not given."""
    autoscaling: Autoscaling | None = None
    """Instead of a fixed number of replicas."""
    cpus: float = Field(0.1, ge=0)
    """Ray CPUs that a replica reserves: bookkeeping for placement. Small, so that several ensembles fit a
    laptop; the threads that a replica computes with are the spec's."""
    gpus: float = Field(0, ge=0)
    """Ray GPUs that a replica reserves, also a part of one: bookkeeping, memory is not kept apart."""
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

    @model_validator(mode="after")
    def _replicas(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("give 'replicas' or 'autoscaling', not both")
        return self


_DEFAULTS = MemberOptions()


def _off(value: Any) -> Any:
    """A bare `off` is false in YAML."""
    return "off" if value is False else value


class ServingSettings(Settings):
    host: str = "127.0.0.1"
    """Loopback unless asked."""
    port: int = Field(8000, ge=1, le=65535)
    grpc_port: int | None = Field(None, ge=1, le=65535)
    """Also serve the protocol over gRPC there, on the same host; not at all when not given."""
    requests: int = Field(64, ge=1)
    """Real HTTP requests that the run sends through each ensemble to compare its answers."""
    placement: Placement | Literal["auto"] = "distributed"
    """Where members run; `auto` is decided for each ensemble by measurement."""
    compile: bool = True
    """Fused members that are asked together become one compiled graph, where their execution allows it."""
    replicas: int = Field(1, ge=1)
    """Of every member that `members` does not say otherwise for, and of the ingress if it holds any."""
    instances: int = Field(1, ge=1)
    """Copies of its members that a process holds, each on a thread of its own: so many batches are computed
    at once. Of members that run with the ingress (`fused`); those that are deployments have replicas."""
    members: dict[str, MemberOptions] = Field(default_factory=dict)
    """By member name; the defaults for all others."""
    max_requests: int = Field(256, ge=1)
    """Inference requests in work at once; more are refused (503)."""
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    max_bodies_bytes: int = Field(2**30, ge=1024)
    """Of all bodies in work at once; what would be more is refused (503)."""
    deadline_s: float = Field(30.0, gt=0)
    """Longest time for one answer; past it the reply is 504."""
    drain_s: float = Field(15.0, gt=0)
    """Time that requests in work have when a replica of the ingress stops; Serve ends it 5 s later."""
    guard: GuardSettings | None = GuardSettings()
    """For ensembles of three members or more with a quorum; None: nobody is ejected."""
    audit: float = Field(0.01, ge=0, le=1)
    """Share of the rows of a cascade with a guarantee that are held against the whole cascade's answer."""

    feedback: FeedbackSettings | None = None
    """Learn the weights of mixes from labels that clients send later."""
    access: AccessSettings = AccessSettings()
    tls: TlsSettings | None = None
    """HTTPS instead of HTTP."""
    request_log: Annotated[Literal["off", "text", "json"], BeforeValidator(_off)] = "off"
    """A line for each request, with its id, on the replica's standard error."""

    def options(self, member: str) -> MemberOptions:
        """Of the member of that name."""
        return self.members.get(member, _DEFAULTS)

    def replicas_of(self, member: str) -> int:
        """Most replicas of the member of that name."""
        options = self.options(member)
        return options.autoscaling.max_replicas if options.autoscaling else options.replicas or self.replicas

    @model_validator(mode="after")
    def _instances_of_something(self) -> Self:
        places = [self.placement, *(options.placement for options in self.members.values())]
        if self.instances > 1 and not {"fused", "auto"} & set(places):
            raise ValueError(
                f"instances ({self.instances}) are copies of fused members, and none is: set placement fused "
                "or auto, or give members replicas"
            )
        return self

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> Self:
        if not (is_loopback(self.host) or self.access.keys or self.access.open):
            raise ValueError(
                f"{self.host} can be reached from other machines: give access.keys, a file of API keys "
                "('orchestrator keys add NAME' makes one), or access.open if a gateway asks for keys"
            )
        return self

    @model_validator(mode="after")
    def _rate_of_keys(self) -> Self:
        if self.access.rate_per_s is not None and not self.access.keys:
            raise ValueError("access.rate_per_s counts the requests of each key: give access.keys")
        return self

    @model_validator(mode="after")
    def _feedback_of_one_replica(self) -> Self:
        apart = any(options.placement not in (None, "fused") for options in self.members.values())
        if self.feedback is not None and self.placement == "fused" and not apart and self.replicas > 1:
            raise ValueError(
                f"feedback needs one replica, which knows all answers: replicas is {self.replicas}"
            )
        return self

    def local(self) -> ServingSettings:
        """The same on loopback, for requests of this machine only: no keys, no TLS."""
        host = self.host if is_loopback(self.host) else "127.0.0.1"
        return self.model_copy(update={"host": host, "access": AccessSettings(), "tls": None})


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
