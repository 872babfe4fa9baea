"""The image: pinned base, no root, versions of `constraints.txt`, files that exist. Not built here."""

from __future__ import annotations

import re

from tests.architecture.modules import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [
    line for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line.strip() and not line.startswith("#")
]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in LINES if line.partition(" ")[0] == name]


def test_only_known_instructions() -> None:
    known = {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "CMD"}
    assert {line.partition(" ")[0] for line in LINES} <= known


def test_the_base_is_pinned_to_a_patch_version() -> None:
    arguments = dict(argument.split("=", 1) for argument in instructions("ARG"))
    assert re.fullmatch(r"3\.\d+\.\d+", arguments["PYTHON"])
    bases = instructions("FROM")
    assert [base.split()[0] for base in bases] == ["python:${PYTHON}-slim-bookworm"] * 2
    assert arguments["ACCELERATOR"] == "cpu"


def test_versions_are_those_of_the_constraints() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = set(re.findall(r"\b([\w-]+==[\w.]+)", TEXT))
    assert named
    assert named <= set(pinned)
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert all(part.count("--constraint") == part.count("pip install") for part in installs)


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    for copied in instructions("COPY"):
        if copied.startswith("--from="):
            continue
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source.removeprefix("./")).exists(), source
            assert f"!{source}" in IGNORED, f".dockerignore leaves {source} out"
    assert IGNORED[IGNORED.index("*")] == "*", "nothing but what is named goes to the builder"


def test_the_process_is_not_root_and_asks_for_a_token() -> None:
    (user,) = instructions("USER")
    assert user not in ("root", "0")
    assert f" {user}" in next(line for line in instructions("RUN") if "useradd" in line)
    last = LINES[max(number for number, line in enumerate(LINES) if line.startswith("FROM")) :]
    order = [line.partition(" ")[0] for line in last]
    assert order.index("USER") < order.index("CMD")
    assert "RUN" not in order[order.index("USER") :]
    assert "RAY_AUTH_MODE=token" in " ".join(instructions("ENV"))


def test_no_secret_is_an_argument() -> None:
    assert not re.search(
        r"(?i)(ARG|ENV).*(token|password|secret|key)\b(?!.*RAY_AUTH_MODE)",
        TEXT.replace("RAY_AUTH_MODE=token", ""),
    )
