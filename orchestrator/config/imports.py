"""Import paths `package.module:callable`: what the run file names may run, nothing else."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from orchestrator.errors import ModelError

ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`package.module:callable`."""


def resolve(path: str, allowed: Collection[str]) -> Callable[..., Any]:
    """Import the callable that `path` names, if `allowed` lists it.

    Raises:
        ModelError: the path is not allowed, cannot be imported, or is not callable.
    """
    if path not in allowed:
        raise ModelError(
            "import path is not allowed",
            path,
            "name it in the run file or pass --allow " + path,
        )
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"cannot import {module_name} ({error})",
            path,
            "check the spelling and that its folder is on PYTHONPATH",
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ModelError(f"{module_name} has no callable {attribute}", path, "check the name after the colon")
    return found  # type: ignore[no-any-return]


def code_digest(path: str) -> str | None:
    """Digest of the module that an import path names, and of the one that its callable is written in.

    What was made by other code must not be found. What the code calls in other files is not seen.

    Args:
        path: of what is imported already.

    Returns:
        None where there is no file of it.
    """
    place, _, name = path.partition(":")
    module = sys.modules.get(place)
    function = inspect.unwrap(getattr(module, name))
    holder = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    written = sys.modules.get(holder.__module__)
    files = {getattr(one, "__file__", None): None for one in (module, written)}  # in this order, once
    found = b"".join(Path(file).read_bytes() for file in files if file)
    return hashlib.sha256(found).hexdigest() if found else None
