"""Tensors packed for a file: of many zeros as a bit for each number and the numbers that are not zero; of
equal ones, such as tied weights, the first alone.

Bits and numbers are deflated. Han et al. 2016 ("Deep Compression", https://arxiv.org/abs/1510.00149) store
pruned weights as gaps and Huffman codes for the same reason: a pruned weight saves nothing until the file
leaves it out.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_ZEROS = 0.25
"""Share of zeros from which packing is tried."""
LEAST_SAVED_BYTES = 256
"""What packing must save: how to read a packed tensor takes some 60 bytes of the header. Smaller equal
tensors are all kept, too."""
SMALL_BYTES, MOST_TIMES = 4096, 64
"""A tensor above the first unpacks to at most so many times its packed bytes: small files fill no memory."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Numbers of that many bytes as bits: -0.0 is not the zero that is left out."""


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[Any] | str]]:
    """Tensors to store, and how to read those that were packed.

    Args:
        tensors: by name; dense, on the CPU and contiguous.

    Returns:
        The tensors but copies, those that packing makes smaller as uint8 [bytes]; and of each of these its
        type, shape and the bytes of its packed bits, of each copy the name of the one that is kept.
    """
    stored: dict[str, Tensor] = {}
    how: dict[str, list[Any] | str] = dict(_copies(tensors))
    for name, tensor in tensors.items():
        if name in how:
            continue
        packed = _packed(tensor)
        if packed is None:
            stored[name] = tensor
            continue
        bits, numbers = packed
        stored[name] = torch.frombuffer(bytearray(bits + numbers), dtype=torch.uint8)
        how[name] = [_NAMES[tensor.dtype], list(tensor.shape), len(bits)]
    return stored, how


def unpack(stored: Mapping[str, Tensor], how: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that `pack` was given, bit by bit; copies share their memory, so none takes more.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the two do not belong together, or a tensor claims more
            than its bytes may.
    """
    tensors = dict(stored)
    copies = {name: kept for name, kept in how.items() if isinstance(kept, str)}
    for name in how.keys() - copies.keys():
        dtype, shape, border = how[name]
        tensors[name] = _unpacked(stored[name], _DTYPES[dtype], shape, border)
    if both := copies.keys() & stored.keys():
        raise ValueError(f"{min(both)} is stored, and a copy of another")
    return tensors | {name: tensors[kept] for name, kept in copies.items()}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that equal one of an earlier name -> that name; sharing memory does not count, since a training
    hands over copies. Constant ones (a norm's start) are equal by chance, not tied.
    """
    kept: dict[tuple[torch.dtype, torch.Size, bytes], str] = {}
    found: dict[str, str] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.nbytes < LEAST_SAVED_BYTES:
            continue
        numbers = tensor.reshape(-1).view(torch.uint8).reshape(tensor.numel(), -1).numpy()
        key = (tensor.dtype, tensor.shape, hashlib.sha256(numbers.data).digest())
        if key not in kept:
            kept[key] = name
        elif (numbers != numbers[0]).any():
            found[name] = kept[key]
    return found


def _packed(tensor: Tensor) -> tuple[bytes, bytes] | None:
    if tensor.dtype not in _NAMES or not tensor.numel():
        return None
    flat = tensor.reshape(-1).view(_BITS[tensor.element_size()]).numpy()
    there = flat != 0
    if there.mean() > 1 - LEAST_ZEROS:
        return None
    bits = zlib.compress(np.packbits(there).tobytes(), 9)
    numbers = zlib.compress(flat[there].tobytes(), 9)
    size = len(bits) + len(numbers)
    if size > flat.nbytes - LEAST_SAVED_BYTES or not _bounded(flat.nbytes, size):
        return None
    return bits, numbers


def _unpacked(packed: Tensor, dtype: torch.dtype, shape: list[int], border: int) -> Tensor:
    whole = torch.empty(0, dtype=dtype)
    kind = whole.view(_BITS[whole.element_size()]).numpy().dtype
    count = math.prod(shape)
    data = packed.numpy().tobytes()
    if not _bounded(count * kind.itemsize, len(data)):
        raise ValueError(f"{len(data)} bytes cannot be {shape} of {dtype}")
    bits = np.frombuffer(_inflated(data[:border], -(-count // 8)), np.uint8)
    there = np.unpackbits(bits, count=count).astype(bool)
    flat = np.zeros(count, kind)
    flat[there] = np.frombuffer(_inflated(data[border:], int(there.sum()) * kind.itemsize), kind)
    return torch.from_numpy(flat).view(dtype).reshape(shape)


def _bounded(size: int, packed: int) -> bool:
    return size <= max(SMALL_BYTES, MOST_TIMES * packed)


def _inflated(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes; no more is inflated than that."""
    stream = zlib.decompressobj()
    found = stream.decompress(data, size + 1)
    if len(found) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"packed bytes do not inflate to {size}")
    return found
