"""Data-parallel wrapping, and tensors to and from their whole CPU form (plain, DDP and FSDP alike)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from orchestrator.errors import OrchestratorError

Strategy = Literal["ddp", "fsdp"]
_T = TypeVar("_T")
WAIT = timedelta(days=1)


def wrap(module: nn.Module, strategy: Strategy, world: int, device: torch.device) -> nn.Module:
    """The module to call in training: itself in a world of one, else data-parallel.

    FSDP shards the parameters of `module` in place (fully_shard, Zhao et al. 2023,
    https://arxiv.org/abs/2304.11277), layers that repeat and the children of its body first, so that only one
    of them is whole at a time.
    """
    if world == 1:
        return module
    if strategy == "ddp":
        return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (world,))
    for layer in _repeated(module):
        fully_shard(layer, mesh=mesh)
    for child in getattr(module, "body", module).children():
        left = any(not isinstance(parameter, DTensor) for parameter in child.parameters())
        if left and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a stack such as a transformer's encoder, inner ones first; no lists of single weights."""
    for stack in reversed(list(module.modules())):
        if isinstance(stack, nn.ModuleList) and len({type(layer) for layer in stack}) == 1:
            yield from (layer for layer in stack if any(True for _ in layer.children()))


def whole(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy; of a sharded tensor all shards together (every rank must call)."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True).contiguous()


def fill(place: Tensor, value: Tensor) -> None:
    """Write a whole tensor into `place`, which keeps its memory format and sharding."""
    with torch.no_grad():
        value = value.to(place.device)
        if isinstance(place, DTensor):
            value = distribute_tensor(value, place.device_mesh, place.placements)
        place.copy_(value)


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's `state_dict` as whole CPU copies."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def fill_model(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write whole tensors into a module."""
    for name, place in module.state_dict().items():
        fill(place, tensors[name])


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of the optimizer's state as `<parameter>/<slot>`."""
    return {
        f"{name}/{slot}": whole(value)
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def fill_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put an optimizer's state back, laid out like the parameters it belongs to."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape and value.ndim > 0:
            place = torch.zeros_like(parameter, requires_grad=False)
            fill(place, value)
        else:
            place = value.clone()  # a step counter: stays on the CPU
        optimizer.state[parameter][slot] = place


def wait_long(world: int) -> None:
    """Let ranks wait a day for one another, in place of Ray's half hour; each must call.

    One of them may have hours of work to do that the others need, such as a teacher's outputs. Steps that
    hang are for `watch.HangGuard` to end, and a process that dies ends the wait of the others in any case.
    """
    if world > 1:
        distributed.distributed_c10d._set_pg_timeout(WAIT)


@contextmanager
def failing_together(world: int) -> Iterator[None]:
    """Wait at the end of the block for all ranks; an error of ours that one of them met ends them all.

    A rank that gave up alone would leave the others waiting for it in their first step.

    Raises:
        OrchestratorError: the error of the first rank that met one.
    """
    failure: OrchestratorError | None = None
    try:
        yield
    except OrchestratorError as error:
        failure = error
    found = [failure]
    if world > 1:
        found = [None] * world
        distributed.all_gather_object(found, failure)
    for first in filter(None, found):
        raise first


def from_first(make: Callable[[], _T], world: int) -> _T:
    """What `make` gives on rank 0, for every rank; each must call.

    Raises:
        OrchestratorError: what `make` raises, on every rank.
    """
    if world == 1:
        return make()
    first = distributed.get_rank() == 0
    found: list[Any] = [None]
    with failing_together(world):
        found = [make() if first else None]
    distributed.broadcast_object_list(found, src=0)
    value: _T = found[0]
    return value


def share_buffers(module: nn.Module, world: int) -> None:
    """Give every rank the batch statistics of rank 0."""
    if world > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def sum_over_ranks(values: Tensor, world: int) -> Tensor:
    """The sum of a small tensor over all ranks."""
    if world > 1:
        distributed.all_reduce(values)
    return values


def gather_rows(rows: Tensor, world: int) -> list[Tensor]:
    """The equally shaped tensors of all ranks, in rank order."""
    if world == 1:
        return [rows]
    parts = [torch.empty_like(rows) for _ in range(world)]
    distributed.all_gather(parts, rows.contiguous())
    return parts
