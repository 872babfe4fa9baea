"""The sequential ensembles: a cascade's later stage is asked only for rows that the earlier ones are unsure
about; the stages of a boosting and the members of a stack are asked together."""

from __future__ import annotations

from deployments.composed import Composed


class Sequential(Composed):
    """Most rows of a cascade cost the first stage alone; one that escalates waits for stage after stage."""
