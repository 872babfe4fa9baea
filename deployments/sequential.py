"""The sequential ensemble: a later stage is asked only for rows that the earlier ones are unsure about."""

from __future__ import annotations

from deployments.composed import Composed


class Sequential(Composed):
    """Most rows cost the first stage alone; a row that escalates waits for one stage after the other."""
