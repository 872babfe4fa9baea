"""Changes to an int8 graph on its way to oneDNN's kernels, each in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import TensorMetadata

from orchestrator.runtime.torchao_names import DEQUANTIZE, QUANTIZE

_POOL = torch.ops.aten.max_pool2d_with_indices.default
_RESHAPE = torch.ops.aten.reshape.default
_NEW_MEMORY = {
    getattr(torch.ops.aten, name)
    for name in (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("linear", "matmul", "batch_norm", "layer_norm", "group_norm", "max_pool2d", "adaptive_avg_pool2d"),
    )
}
"""Composite operators that give new memory. Of others no schema says so: `dropout` may give its input."""


def functionalize(graph: fx.Graph) -> bool:
    """Operators that change a tensor in place as those that make a new one; whether there was any.

    Rounding and lowering know few of their patterns in place. One stays where something that may share the
    tensor's memory is read afterwards, or outlives the graph.
    """
    found = False
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        functional = _functional(node)
        if functional is None or _shared(node, position):
            continue
        old, now = node.all_input_nodes[0], position[node]
        node.target, found = functional, True
        old.replace_all_uses_with(node, lambda user, now=now: position[user] > now)
    return found


def _functional(node: fx.Node) -> OpOverload | None:
    """What makes a new tensor as the node changes its first argument in place; None if nothing does."""
    name = str(node.target).split(".")
    if not isinstance(node.target, OpOverload) or name[0] != "aten" or not name[1].endswith("_"):
        return None
    functional: OpOverload | None = getattr(getattr(torch.ops.aten, name[1][:-1], None), name[2], None)
    if functional is None or _takes(functional) != _takes(node.target) or _aliases(functional):
        return None
    if torch.Tag.nondeterministic_seeded in functional.tags or not _aliases(node.target):
        return None
    given: Any = map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    (old, *others), named = given
    with old.fake_mode:
        new = functional(old, *others, **named)
    # In place, what is added to or compared with a tensor takes on its type.
    return functional if new.dtype == old.dtype else None


def _takes(operator: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in operator._schema.arguments]


def _aliases(operator: OpOverload) -> bool:
    return any(result.alias_info is not None for result in operator._schema.returns)


def _shared(node: fx.Node, position: dict[fx.Node, int]) -> bool:
    """Whether memory of the node's first argument is that of an input or weight, or read later elsewhere."""
    changed, now = node.all_input_nodes[0], position[node]
    same, left = {changed}, [changed]
    while left:
        one = left.pop()
        near = [user for user in one.users if position[user] < now and _may_alias(user)]
        near += filter(_has_tensors, one.all_input_nodes) if _may_alias(one) else []
        left += [other for other in near if other not in same]
        same.update(near)
    return any(
        one.op != "call_function" or (one is not changed and any(position[user] >= now for user in one.users))
        for one in same
    )


def _may_alias(node: fx.Node) -> bool:
    """Whether the node's result may share memory with what it is made from."""
    if node.op != "call_function" or not _has_tensors(node):
        return False
    if not isinstance(node.target, OpOverload):
        return True
    composite = node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return _aliases(node.target) or (composite and node.target.overloadpacket not in _NEW_MEMORY)


def _has_tensors(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor | list | tuple)


def transposes_to_permutes(graph: fx.Graph) -> None:
    """`t` as the `permute` that the lowering patterns look for."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.t.default:
            with graph.inserting_before(node):
                permuted = graph.call_function(torch.ops.aten.permute.default, (node.args[0], [1, 0]))
            permuted.meta = dict(node.meta)
            node.replace_all_uses_with(permuted)
            graph.erase_node(node)


def expect_example(graph: fx.Graph) -> None:
    """Write the example's batch where a shape is symbolic.

    Weights are packed for a kernel, and oneDNN chooses kernels by the input's whole shape. Without one
    it packs for a shape of its own, and each call may pack again: 30 times slower for 384 channels.
    """
    for node in graph.nodes:
        meta = node.meta.get("tensor_meta")
        if isinstance(meta, TensorMetadata):
            shape = torch.Size(
                size.node.hint if isinstance(size, torch.SymInt) else size for size in meta.shape
            )
            node.meta["tensor_meta"] = meta._replace(shape=shape)


def read_once(graph: fx.Graph) -> None:
    """One node for each attribute that the graph reads.

    Folding constants (torch 2.13) deletes the attribute of a node without users, though another node reads
    it, too: a float weight that two layers share.
    """
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and first.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(first[node.target])
            graph.erase_node(node)


def fence_sums(graph: fx.Graph) -> list[fx.Node]:
    """Put a copy between each `relu(convolution)` and a sum; the caller removes them.

    torchao 0.18 fuses the ReLU into the convolution, then the sum too, and fails on its own assertion.
    """
    relu = torch.ops.aten.relu.default
    sums = [node for node in graph.nodes if node.target is torch.ops.aten.add.Tensor]
    fences = []
    terms = [(total, term) for total in sums for term in total.all_input_nodes if term.target is relu]
    for node, term in terms:
        with graph.inserting_before(node):
            fence = graph.call_function(torch.ops.aten.clone.default, (term,))
        fence.meta = dict(term.meta)
        node.replace_input_with(term, fence)
        fences.append(fence)
    return fences


def views_to_reshapes(graph: fx.Graph) -> None:
    """Lowered convolutions give channels-last memory, of which a `view` to rows is impossible."""
    for node in graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = _RESHAPE


def move_integers(graph: fx.Graph) -> None:
    """Max pooling and reshaping between equal scales on the integers themselves.

    Exact, since quantizing is monotone. Lowering leaves dequantize, float operator, quantize there, which
    is a third of the time of a small ResNet-9.
    """
    for node in list(graph.nodes):
        make = _ON_INTEGERS.get(node.target)
        if make is None or node.args[0].target is not DEQUANTIZE:
            continue
        integers, *scale = node.args[0].args
        # Pooling gives a pair, of which the indices must be unused.
        results = list(node.users) if node.target is _POOL else [node]
        users = [user for result in results for user in result.users]
        if any(result.args[1:] != (0,) for result in results if node.target is _POOL):
            continue
        if all(user.target is QUANTIZE and list(user.args[1:]) == scale for user in users):
            with graph.inserting_before(node):
                moved = make(graph, integers, *node.args[1:])
            for user in users:
                user.replace_all_uses_with(moved)


def _pool(
    graph: fx.Graph,
    integers: fx.Node,
    window: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> fx.Node:
    arguments = (integers, window, list(stride) or window, list(padding), list(dilation), ceil)
    return graph.call_function(torch.ops.quantized.max_pool2d.default, arguments)


def _reshape(graph: fx.Graph, integers: fx.Node, shape: list[Any]) -> fx.Node:
    return graph.call_function(_RESHAPE, (integers, shape))


_ON_INTEGERS: dict[Any, Callable[..., fx.Node]] = {_POOL: _pool, _RESHAPE: _reshape}
