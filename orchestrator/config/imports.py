"""Import paths `package.module:callable`: what the run file names may run, nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
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
