"""The command line as tests call it: in this process, or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator.cli import app


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    def sentence(self, code: int) -> str:
        """The one line that a refused command says."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        told = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1, self.err
        assert self.err.splitlines()[-1] == told[0]
        return told[0]


def command(*arguments: str | Path) -> Answer:
    """`orchestrator ARGUMENTS` in this process; an exception that the command lets through is raised."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return Answer(found.exit_code, found.stdout, found.stderr)


def process(*arguments: str | Path, timeout_s: float = 120.0) -> Answer:
    """`python -m orchestrator ARGUMENTS`."""
    line = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)
    return Answer(found.returncode, found.stdout, found.stderr)
