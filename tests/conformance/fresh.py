"""Artifacts loaded in another process: what a server or another day sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.store import Store

_LOADER = """
import json, sys
import numpy as np
from orchestrator.runtime.execute import executions, load
from orchestrator.store.store import Store

store = Store(sys.argv[1], create=False)
outputs = {}
for digest, rows in json.load(open(sys.argv[2])).items():
    executable = load(store, digest, executions(store.manifest(digest))[0], batch=8)
    outputs[digest] = executable(np.load(rows))
np.savez(sys.argv[3], **outputs)
"""
_ROOT = Path(__file__).resolve().parents[2]


def fresh_outputs(
    store: Store, rows: Mapping[str, NDArray[np.generic]], folder: Path
) -> dict[str, NDArray[np.float32]]:
    """Digest -> outputs of the artifact, in its first execution, all from one fresh process without data.

    Args:
        store: where the artifacts are.
        rows: digest -> its raw rows.
        folder: an empty one.
    """
    wanted = {}
    for number, (digest, inputs) in enumerate(rows.items()):
        path = folder / f"{number}.npy"
        np.save(path, inputs)
        wanted[digest] = str(path)
    asked, answer = folder / "wanted.json", folder / "outputs.npz"
    asked.write_text(json.dumps(wanted))
    command = [sys.executable, "-c", _LOADER, str(store.root), str(asked), str(answer)]
    subprocess.run(command, check=True, cwd=_ROOT)
    return dict(np.load(answer))
