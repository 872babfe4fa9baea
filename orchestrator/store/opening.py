"""Which kind of storage a store's location means.

A location is a path or URI, and may end with `#signed-by=KEY,KEY`: then only artifacts and compiled forms
with a signature of one of these keys are loaded (`signing.py`). It stands in the location because that is
what travels to every process that opens the store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyarrow import fs

from orchestrator.errors import InputError, StoreError
from orchestrator.store.arrow import ArrowBlobs
from orchestrator.store.blobs import Blobs
from orchestrator.store.local import LocalBlobs
from orchestrator.store.s3 import S3Blobs

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SIGNED_BY = "#signed-by="


def split_location(location: str | Path) -> tuple[str, tuple[str, ...]]:
    """A location without its signing keys, and these.

    Raises:
        InputError: keys are announced, but none is given.
    """
    text, found, keys = str(location).partition(_SIGNED_BY)
    named = tuple(key for key in keys.split(",") if key)
    if found and not named:
        raise InputError("no key stands after #signed-by=", str(location), "name one, or leave it out")
    for key in named:
        if re.fullmatch("[0-9a-f]{64}", key) is None:
            raise InputError(
                "not a public key", key[:100], "'orchestrator keys signing' prints 64 hex digits"
            )
    return text, named


def with_keys(location: str, keys: tuple[str, ...]) -> str:
    """A location whose loads need a signature of one of `keys`; as it is when there are none."""
    text = split_location(location)[0]
    return f"{text}{_SIGNED_BY}{','.join(keys)}" if keys else text


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URI of something else than a mounted file system."""
    found = _URI.match(str(location))
    return found is not None and found[1].lower() != "file"


def local_root(root: str | Path) -> Path:
    """The absolute local folder that a path or `file://` URI means.

    Raises:
        InputError: the URI is malformed.
        StoreError: it means something else.
    """
    text = split_location(root)[0]
    if is_remote(text):
        raise StoreError("not a folder of this machine", text, "use a local path or a file:// URI")
    if _URI.match(text) is None:
        return Path(os.path.abspath(os.path.expanduser(text)))
    try:
        return Path(os.path.abspath(fs.FileSystem.from_uri(text)[1]))
    except (ValueError, OSError) as error:
        raise InputError("not a valid file:// URI", text, "write file:///absolute/path") from error


def open_blobs(location: str | Path) -> Blobs:
    """The files at a location without keys.

    Raises:
        InputError: the scheme is not supported, or the URI is malformed.
    """
    text = str(location)
    if not is_remote(text):
        return LocalBlobs(local_root(text))
    scheme = text.partition("://")[0].lower()
    if scheme == "s3":
        return S3Blobs(text)
    if scheme in ("gs", "gcs"):
        return ArrowBlobs(text)
    raise InputError(
        f"stores on {scheme}:// are not supported", text, "use a path, s3://, or gs:// to read only"
    )
