"""How the chosen ensembles are served (how, not what: nothing here changes an answer)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Spec
from orchestrator.config.imports import ImportPath

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


class MemberOptions(Settings):
    """How a member's deployment runs: Ray's share and Serve's limits, per member."""

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

    @model_validator(mode="after")
    def _replicas(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("give 'replicas' or 'autoscaling', not both")
        return self


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
    members: dict[str, MemberOptions] = Field(default_factory=dict)
    """By member name; the defaults for all others."""
    max_requests: int = Field(256, ge=1)
    """Inference requests in work at once; more are refused (503)."""
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    deadline_s: float = Field(30.0, gt=0)
    """Longest time for one answer; past it the reply is 504."""


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
