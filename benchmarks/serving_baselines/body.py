"""The body that all servers read, and the answer that all give (Open Inference Protocol V2)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

HEADER_LENGTH = "inference-header-content-length"


def parse(body: bytes, header_length: str | None) -> np.ndarray:
    """Images uint8 [B, C, H, W] of a request with one tensor, binary or JSON."""
    split = len(body) if header_length is None else int(header_length)
    tensor = json.loads(body[:split])["inputs"][0]
    if header_length is None:
        return np.array(tensor["data"], dtype=np.uint8).reshape(tensor["shape"])
    return np.frombuffer(bytearray(memoryview(body)[split:]), dtype=np.uint8).reshape(tensor["shape"])


def answer(logits: np.ndarray) -> dict[str, Any]:
    """The mean of the members' probabilities as JSON values.

    Args:
        logits: float32 [members, B, classes].
    """
    shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=2, keepdims=True)).mean(axis=0)
    labels = probabilities.argmax(axis=1)
    outputs = [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(probabilities.shape),
            "data": probabilities.ravel().tolist(),
        },
        {"name": "label", "datatype": "INT64", "shape": [len(labels)], "data": labels.tolist()},
    ]
    return {"model_name": "trio", "outputs": outputs}
