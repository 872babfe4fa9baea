"""Releases: what serving promotes and rolls back, and how a candidate is tried beside the live one."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FiniteFloat, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Spec


class Release(Settings):
    """All that decides a served answer: immutable, named by its digest."""

    spec: Spec
    """The tree with weights and thresholds, and every member's digest."""
    libraries: dict[str, str | None]
    """Versions of the libraries that executed it when it was made."""


class Canary(Settings):
    """A release that is tried on a share of the requests before it is promoted.

    Both releases answer each of them. A share of disagreeing rows above 1 - `min_agreement` ends the trial; a
    candidate that fails disagrees.
    """

    release: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the candidate."""
    share: float = Field(0.05, gt=0, le=1)
    """Of the requests, by a hash of their id: the same id always gets the same release."""
    shadow: bool = False
    """The live release's answer is sent, whatever the candidate says."""
    min_agreement: float = Field(0.95, ge=0, lt=1)
    """Share of rows with the same label (regression: values within 1e-3)."""
    stopped: str = Field("", max_length=300)
    """Why it is over; empty while it runs."""


class FeedbackSettings(Settings):
    """Weights of a mix that are learned from labels of recent answers (`orchestrator.ensemble.online`)."""

    answers: int = Field(10_000, ge=1, le=1_000_000)
    """Newest answers whose labels are taken."""
    rate: float = Field(0.1, gt=0)
    floor: float = Field(0.05, gt=0, le=1)
    """Share of the weight that all members have alike, whatever the labels say."""
    every_s: float = Field(60.0, ge=0)
    """Shortest time between two weight epochs that are made of labels."""
    min_rows: int = Field(1, ge=1)
    """Fewest labelled rows of a new weight epoch."""


class Labels(Settings):
    """Body of a feedback request."""

    labels: dict[str, int | float | list[int | float] | list[list[float]]] = Field(
        min_length=1, max_length=10_000
    )
    """Per request id: the class of each row, or the values [rows, targets] of a regression."""


class Promote(Settings):
    """Body of a promotion: a release, or an ensemble from which one is made."""

    release: str | None = None
    """Digest or its beginning."""
    spec: str | None = None
    """Ref or digest of an ensemble in the store."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.release is None) == (self.spec is None):
            raise ValueError("give either 'release' or 'spec'")
        return self


class Reweight(Settings):
    """Body of a change of weights or thresholds: the same members, another weight epoch."""

    weights: tuple[FiniteFloat, ...] | None = None
    """Of the root's members, in the order of the tree."""
    thresholds: tuple[FiniteFloat, ...] | None = None
    """Of the root's stages but the last."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.weights is None) == (self.thresholds is None):
            raise ValueError("give either 'weights' or 'thresholds'")
        return self


class Rollback(Settings):
    """Body of a rollback."""

    release: str | None = None
    """Digest or its beginning; the one before the live one when not given."""
