"""What a search asks for that does not fit the rest of the run file."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.config.search import Promise, SearchSettings
from orchestrator.config.signature import Task


def search_complaint(settings: SearchSettings | None, models: Collection[str], task: Task) -> str | None:
    """What is wrong with a search, or None.

    Args:
        settings: Of the search, if there is one.
        models: Names of the run's models.
        task: Of the run.
    """
    if settings is None:
        return None
    if settings.parent not in models:
        return f"parent: no model is named '{settings.parent}'; models: {', '.join(models)}"
    return promise_complaint(settings.promise, task)


def promise_complaint(promise: Promise | None, task: Task) -> str | None:
    """What a promise bounds that the task has not, or None."""
    classes = [key for key in ("max_class_drop", "max_changed") if getattr(promise, key, None) is not None]
    if classes and task == "regression":
        return f"promise.{classes[0]} needs classes, which task regression has not: leave it out"
    return None
