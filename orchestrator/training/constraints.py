"""What training keeps true of the weights: zeros stay, more become zero, none passes its limit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orchestrator.config.constraints import Penalty, Sparsify
from orchestrator.config.training import Training
from orchestrator.errors import ConfigError
from orchestrator.models.base import weights_of
from orchestrator.training.limits import limits

LIMITS_EVERY = 20
"""Steps between two looks for limits that depend on the weights."""


class Constraints:
    """The constraints of one training run. Nothing here is saved: an epoch's first step finds all anew."""

    def __init__(self, module: nn.Module, settings: Training, masks: Mapping[str, Tensor]) -> None:
        """Take the module as it will be trained, on its device.

        Args:
            module: whose parameters are trained.
            settings: `sparsify`, `penalty` and `clip_weights` are read.
            masks: parameter name -> bool tensor, True where a weight lives.

        Raises:
            ConfigError: the module has no weight that a constraint is about.
        """
        self.settings = settings
        self._parameters = dict(module.named_parameters())
        self._weights = {name: weight for name, weight in weights_of(module).items() if weight.requires_grad}
        self._given = {name: ~mask.to(self._parameters[name].device) for name, mask in masks.items()}
        self._dead = dict(self._given)
        self._limits: dict[str, Tensor] = {}
        self._scales = [
            part.weight
            for part in module.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is not None
        ]
        penalty = settings.penalty
        if penalty is not None and penalty.kind == "bn_scale" and not self._scales:
            raise ConfigError("penalty bn_scale needs batch norm layers", type(module).__name__, "use l1")
        if (penalty or settings.sparsify or settings.clip_weights) and not self._weights:
            raise ConfigError(
                "sparsify, penalty and clip_weights need a trained convolution or linear",
                type(module).__name__,
                "remove them",
            )
        chosen = settings.sparsify and settings.sparsify.n_of_m
        if chosen and all(weight.shape[1] % chosen[1] for weight in self._weights.values()):
            raise ConfigError(
                f"sparsify finds no layer whose input is a multiple of {chosen[1]}",
                "{} of {}".format(*chosen),
                "choose a smaller M",
            )
        self.project()

    def begin(self, step: int, epoch_step: int, steps: int) -> None:
        """Before step `step` of `steps` (step `epoch_step` of its epoch): choose zeros and limits anew."""
        sparsify, clip = self.settings.sparsify, self.settings.clip_weights
        if sparsify is not None and (epoch_step % sparsify.every == 0 or step == steps - 1):
            self._choose_zeros(sparsify, step / max(steps - 1, 1))
            self.project()
        if clip is not None and epoch_step % LIMITS_EVERY == 0:
            self._limits = {name: limits(weight, clip) for name, weight in self._weights.items()}
            self.project()

    def penalty(self) -> Tensor | None:
        """The loss's term, a scalar with its gradient; None when there is none."""
        chosen = self.settings.penalty
        return None if chosen is None else chosen.strength * self._sum(chosen)

    def project(self) -> None:
        """Make the constraints true of the weights as they are now: after each optimizer step."""
        with torch.no_grad():
            for name, limit in self._limits.items():
                self._weights[name].copy_(self._weights[name].clamp(-limit, limit))
            for name, dead in self._dead.items():
                self._parameters[name].masked_fill_(dead, 0.0)

    def _choose_zeros(self, sparsify: Sparsify, progress: float) -> None:
        sizes = {name: weight.detach().abs() for name, weight in self._weights.items()}
        share = share_of_zeros(sparsify, progress)
        if sparsify.n_of_m is None:
            masks = largest(sizes, share, sparsify.scope)
        else:
            m = sparsify.n_of_m[1]
            masks = largest_of_each(sizes, m - round(share * m), m)
        self._dead = {name: ~mask for name, mask in masks.items()}
        for name, dead in self._given.items():
            self._dead[name] = self._dead[name] | dead if name in self._dead else dead

    def _sum(self, penalty: Penalty) -> Tensor:
        if penalty.kind == "bn_scale":
            return torch.stack([scale.abs().sum() for scale in self._scales]).sum()
        weights = list(self._weights.values())
        if penalty.kind == "l1":
            return torch.stack([weight.abs().sum() for weight in weights]).sum()
        rows = [weight.flatten(1) for weight in weights]
        return torch.stack([_norms(row).sum() * row.shape[1] ** 0.5 for row in rows]).sum()


def share_of_zeros(sparsify: Sparsify, progress: float) -> float:
    """Share of zeros when `progress`, 0 to 1, of the training is done."""
    done = (progress - sparsify.start) / (sparsify.end - sparsify.start)
    amount = sparsify.amount
    if sparsify.n_of_m is not None:
        amount = 1 - sparsify.n_of_m[0] / sparsify.n_of_m[1]
    assert amount is not None
    return float(amount * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3))


def largest(sizes: Mapping[str, Tensor], amount: float, scope: str) -> dict[str, Tensor]:
    """True but for the share `amount` of the smallest, over all (`global`) or in each `layer`.

    Args:
        sizes: absolute weights by name, any shapes; equal ones fall by position.
        amount: 0 to 1.
        scope: `global` or `layer`.
    """
    if scope == "layer":
        return {name: _largest(size.flatten(), amount).view_as(size) for name, size in sizes.items()}
    together = _largest(torch.cat([size.flatten() for size in sizes.values()]), amount)
    pieces = together.split([size.numel() for size in sizes.values()])
    return {name: piece.view_as(size) for (name, size), piece in zip(sizes.items(), pieces, strict=True)}


def largest_of_each(sizes: Mapping[str, Tensor], n: int, m: int) -> dict[str, Tensor]:
    """True for the `n` largest of each `m` weights that lie side by side along a layer's input (along the
    output of a transposed convolution).

    Layers whose input is no multiple of `m` stay whole, as sparse kernels would leave them.

    Args:
        sizes: absolute weights [O, I, ...] by name; equal ones fall by position.
        n: 0 to `m`.
        m: size of a group.
    """
    masks = {}
    for name, size in sizes.items():
        # The input channel runs along a group, as matrix kernels walk it.
        rows = size.movedim(1, -1)
        stays = torch.ones_like(rows, dtype=torch.bool)
        if rows.shape[-1] % m == 0:
            order = rows.reshape(-1, m).argsort(dim=1, stable=True)
            groups = stays.reshape(-1, m).scatter_(1, order[:, : m - n], value=False)
            stays = groups.reshape(rows.shape)
        masks[name] = stays.movedim(-1, 1)
    return masks


def _largest(sizes: Tensor, amount: float) -> Tensor:
    stays = torch.ones(len(sizes), dtype=torch.bool, device=sizes.device)
    stays[sizes.argsort(stable=True)[: round(amount * len(sizes))]] = False
    return stays


def _norms(rows: Tensor) -> Tensor:
    """Norms [R] of rows [R, N]; a row of zeros gets no gradient instead of NaN."""
    return (rows.square().sum(1) + 1e-12).sqrt()
