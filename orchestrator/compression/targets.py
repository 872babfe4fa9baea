"""What channel pruning is asked to leave: a share of the operations, the parameters or the latency."""

from __future__ import annotations

from torch import nn

from orchestrator.config.measure import LatencySettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import ChannelPruning
from orchestrator.measure.cost import count
from orchestrator.measure.latency import compare
from orchestrator.models.build import example_inputs
from orchestrator.runtime.execute import of_module

_LATENCY = LatencySettings(batch=32, threads=1, blocks=7)


class Target:
    """A step's target, and what smaller forms of one model have left of it."""

    def __init__(self, step: ChannelPruning, whole: nn.Module, signature: Signature) -> None:
        """Of a step that has no `amount`; `whole` is the model before pruning, which must not change."""
        given = {name: getattr(step, name) for name in ("macs", "params", "latency")}
        self.name, self.share = next((name, share) for name, share in given.items() if share is not None)
        self._whole, self._signature = whole, signature
        self._count = 1.0 if self.name == "latency" else self._counted(whole)

    def left_of(self, smaller: nn.Module) -> float:
        """The share that a smaller form has left; a latency is measured in turns with the whole model's."""
        if self.name != "latency":
            return self._counted(smaller) / self._count
        rows = example_inputs(self._signature, _LATENCY.batch)
        whole, own = (
            of_module(module, self._signature, "eager", threads=_LATENCY.threads)
            for module in (self._whole, smaller)
        )
        # Timed alone, at another moment, a busy machine makes a form half as slow again as it is.
        found = compare({"whole": lambda: whole(rows), "own": lambda: own(rows)}, _LATENCY, baseline="whole")
        return 1 / found["own"].ratio

    def _counted(self, module: nn.Module) -> float:
        return float(getattr(count(module, self._signature), self.name))
