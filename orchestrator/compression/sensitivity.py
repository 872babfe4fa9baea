"""How much each layer's channels matter: the metric after pruning one layer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from torch import nn

from orchestrator.compression.channels import cuts_of, remove, scored, select
from orchestrator.compression.step import Context, State, copy_of, metric_of, seeded
from orchestrator.config.measure import Metric
from orchestrator.config.steps import ChannelPruning, Criterion
from orchestrator.errors import CompressionError
from orchestrator.measure.cost import count
from orchestrator.measure.metrics import score
from orchestrator.runtime.execute import of_module, predict

AMOUNTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Reading:
    """One layer pruned by one amount, all others whole."""

    layer: str
    amount: float
    """Share of the layer's channels that was removed, after rounding."""
    metric: float
    """On validation rows, without any fine-tuning."""
    macs: float
    """Share of the whole model's operations that is left."""


@dataclass(frozen=True)
class Sensitivity:
    """Readings of all layers."""

    metric: Metric
    before: float
    """The metric of the whole model."""
    readings: tuple[Reading, ...]

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "metric": self.metric.label,
            "before": self.before,
            "readings": [asdict(reading) for reading in self.readings],
        }

    def figure(self) -> go.Figure:
        """A line a layer: the metric against the share of its channels that was removed."""
        figure = go.Figure()
        for layer in dict.fromkeys(reading.layer for reading in self.readings):
            own = [reading for reading in self.readings if reading.layer == layer]
            figure.add_scatter(
                x=[0.0, *(reading.amount for reading in own)],
                y=[self.before, *(reading.metric for reading in own)],
                mode="lines+markers",
                name=layer,
                customdata=[1.0, *(reading.macs for reading in own)],
                hovertemplate="%{x:.0%} removed: %{y:.4f}, %{customdata:.0%} of the operations left",
            )
        return figure.update_layout(
            template="plotly_white",
            title="Sensitivity of each layer, without fine-tuning",
            xaxis={"title": "channels removed", "tickformat": ".0%"},
            yaxis={"title": f"{self.metric.label} on validation rows"},
        )

    def write(self, path: str | Path) -> Path:
        """Write the figure as one HTML file that needs no network."""
        path = Path(path)
        self.figure().write_html(path, include_plotlyjs=True)
        return path


def layer_sensitivity(
    state: State,
    context: Context,
    amounts: Sequence[float] = AMOUNTS,
    *,
    criterion: Criterion = "l2",
    round_to: int = 1,
) -> Sensitivity:
    """Prune each group of coupled channels alone and look at the metric (Li et al. 2017, https://arxiv.org/abs/1608.08710).

    Args:
        state: the model, which is not changed.
        context: validation rows, and what the criterion needs.
        amounts: shares of the channels to remove, each in turn.
        criterion: which channels go first.
        round_to: keep channel counts at a multiple of this.

    Raises:
        CompressionError: there are no validation rows, or the model's channels cannot be ranked.
    """
    if context.validation is None or len(context.validation.ids) == 0:
        raise CompressionError("a sensitivity needs validation rows", fix="give the data such a part")
    part, metric, signature = context.validation, metric_of(context, state.signature), state.signature

    def value(module: nn.Module) -> float:
        outputs = predict(of_module(module, signature, "eager", threads=context.threads), part.inputs)
        return score(metric, outputs, part.targets, allowed=context.allowed)

    whole = count(state.module, signature).macs
    step = ChannelPruning(amount=0.5, criterion=criterion, round_to=round_to)
    with seeded(context):
        found = scored(copy_of(state.module), step, state, context)
    readings: list[Reading] = []
    for group in found:
        for amount in sorted(amounts):
            chosen = select([group], step, amount)
            removed = len(chosen[group.layer]) / (len(group.scores) * group.blocks)
            if not removed or any(removed == seen.amount for seen in readings if seen.layer == group.layer):
                continue
            module = copy_of(state.module)
            with torch.random.fork_rng(devices=()):
                remove(module, cuts_of(chosen), signature)
            macs = count(module, signature).macs / whole
            readings.append(Reading(group.layer, removed, value(module), macs))
    return Sensitivity(metric, value(state.module), tuple(readings))
