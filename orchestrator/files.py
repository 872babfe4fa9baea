"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file into a folder that is there; where that fails, an earlier one stays and no part of this.

    A process that is killed meanwhile leaves a part under a hidden name of its own.

    Args:
        path: the file.
        data: all of it; a text as UTF-8.
        mode: permissions, less those that the umask takes.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
