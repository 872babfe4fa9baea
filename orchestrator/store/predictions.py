"""Cached outputs of an artifact, `predictions/<digest>/<key>.parquet`: one row a sample."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import CorruptArtifactError, StoreError
from orchestrator.store import holds
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import check_digest, check_segment

Outputs = NDArray[np.float32] | NDArray[np.float16]


def put(blobs: Blobs, digest: str, key: str, ids: NDArray[np.int64], outputs: Outputs) -> None:
    """Store outputs float32 or float16 [N, K] of the samples `ids` int64 [N], in place of older ones.

    Raises:
        StoreError: the shapes do not fit together.
    """
    if outputs.ndim != 2 or ids.shape != outputs.shape[:1] or outputs.shape[1] < 1:
        raise StoreError("predictions need ids [N] and outputs [N, K]", f"{ids.shape} and {outputs.shape}")
    kept = outputs.dtype if outputs.dtype == np.float16 else np.dtype(np.float32)
    values = pa.array(np.ascontiguousarray(outputs, dtype=kept).reshape(-1))
    table = pa.table(
        {
            "id": pa.array(np.ascontiguousarray(ids, dtype=np.int64)),
            "outputs": pa.FixedSizeListArray.from_arrays(values, outputs.shape[1]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    blobs.put(_key(digest, key), sink.getvalue().to_pybytes())


def get(
    blobs: Blobs, digest: str, key: str, ids: NDArray[np.int64] | None = None
) -> NDArray[np.float32] | None:
    """A fresh float32 [N, K], however it is kept; None when nothing of just these samples is.

    Raises:
        CorruptArtifactError: the file is damaged.
    """
    name = _key(digest, key)
    if not blobs.exists(name):
        return None
    found, outputs = _read(blobs, name)
    blobs.used(name)
    return outputs if ids is None or np.array_equal(found, ids) else None


def hold(blobs: Blobs, digest: str, key: str) -> None:
    """Keep a file from being taken for unused while this process lives, where a disk has locks."""
    if blobs.local:
        holds.hold(blobs.path(_key(digest, key)))


def is_held(blobs: Blobs, name: str) -> bool:
    """Whether a living process holds the file of this key."""
    return blobs.local and holds.is_held(blobs.path(name))


def kept(blobs: Blobs) -> Iterator[str]:
    """Keys of all files of outputs."""
    for key in blobs.list("predictions"):
        if re.fullmatch("predictions/[0-9a-f]{64}/[^/]+[.]parquet", key):
            yield key


def verify(blobs: Blobs, name: str) -> None:
    """Read the file of this key. It is no use of the outputs.

    Raises:
        CorruptArtifactError: it is damaged.
        NotFoundError: it is gone.
    """
    _read(blobs, name)


def _read(blobs: Blobs, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    data = blobs.get(name)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        found = table.column("id").to_numpy()
        lists = table.column("outputs").combine_chunks()
        outputs = np.array(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        return found, outputs.reshape(len(found), lists.type.list_size)
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(
            "stored predictions are damaged", name, "'orchestrator models repair' moves them away; run again"
        ) from error


def _key(digest: str, key: str) -> str:
    return f"predictions/{check_digest(digest)}/{check_segment(key)}.parquet"
