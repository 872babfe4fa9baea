"""What every command of the command line has around it: sentences instead of tracebacks, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import typer

from orchestrator.errors import OrchestratorError, of_system

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """One sentence and an exit code instead of a traceback, for errors that have a sentence."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except OrchestratorError as error:
            raise complain(error, bool(kwargs.get("as_json"))) from None
        except KeyboardInterrupt:
            typer.secho("stopped; run the same command again to continue", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(1) from None
        except OSError as error:
            explained = of_system(error)
            if explained is None:
                raise
            raise complain(explained, bool(kwargs.get("as_json"))) from None

    return wrapper


def complain(error: OrchestratorError, as_json: bool) -> typer.Exit:
    """Tell the error; what to raise next."""
    if as_json:
        print_json({"error": str(error), "kind": type(error).__name__})
    typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
    return typer.Exit(error.exit_code)


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def print_document(document: dict[str, Any], *, as_json: bool) -> None:
    """A document for programs, or its `text` for people."""
    text = document.pop("text")
    if as_json:
        print_json(document)
    else:
        typer.echo(text)
