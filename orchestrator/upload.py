"""What a job's working directory sends to the cluster, counted and checked before anything is sent."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from orchestrator.errors import ConfigError

log = logging.getLogger(__name__)

LIMIT_BYTES = 100 * 2**20
"""Of one upload: more the cluster's dashboard refuses (`client_max_size` of its server), without a reason."""
NAMED = 5
_IGNORE_FILES = (".gitignore", ".rayignore")
_MOST = 0.9
"""A folder is named instead of its parent when it holds this share of the parent's bytes."""


@dataclass(frozen=True)
class Upload:
    """The files of a folder that Ray would send."""

    folder: Path
    files: Mapping[str, int]
    """Relative path -> bytes, sorted by path."""

    @property
    def bytes(self) -> int:
        """Of all files, before compression."""
        return sum(self.files.values())

    def largest(self) -> list[tuple[str, int]]:
        """The entries that hold most bytes, folders as `name/`, the largest first."""
        tops: dict[str, dict[str, int]] = {}
        for path, size in self.files.items():
            tops.setdefault(path.partition("/")[0], {})[path] = size
        found = [(_narrowed(name, files), sum(files.values())) for name, files in tops.items()]
        return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:NAMED]

    def check(self) -> None:
        """Refuse a folder that is too large.

        Raises:
            ConfigError: names what is largest and where to list what stays behind.
        """
        if self.bytes <= LIMIT_BYTES:
            return
        largest = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in self.largest())
        raise ConfigError(
            f"the working directory has {self.bytes / 2**20:.1f} MiB, a job's upload may have "
            f"{LIMIT_BYTES / 2**20:.0f} MiB; the largest are",
            largest,
            f"list what the job does not need in {self.folder / '.rayignore'}",
        )

    def digest(self) -> str:
        """Hex sha256 of all paths and contents."""
        whole = hashlib.sha256()
        for path in self.files:
            with (self.folder / path).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path}\n{content}\n".encode())
        return whole.hexdigest()

    def copy_to(self, target: Path) -> None:
        """Copy the files, but not what says which are ignored: that is applied already."""
        for path in self.files:
            place = target / path
            if place.name not in _IGNORE_FILES:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / path, place)


def upload_of(folder: Path) -> Upload:
    """The files that Ray sends of a folder: all but what it always leaves out and what ignore files name.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError("the working directory does not exist", folder, "name a folder")
    always = set(get_runtime_env_default_excludes())
    with_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    files: dict[str, int] = {}

    def travel(place: Path, ignored: list[object]) -> None:
        # Ray's own reading of ignore files, so that what is counted is what would be sent.
        ignored = [*ignored, *get_excludes_from_ignore_files(place, with_gitignore, log)]
        for entry in sorted(place.iterdir()):
            if entry.name in always or any(match(entry) for match in ignored):  # type: ignore[operator]
                continue
            if entry.is_dir():
                travel(entry, ignored)
            elif entry.is_file():
                files[entry.relative_to(folder).as_posix()] = entry.stat().st_size

    travel(folder, [])
    return Upload(folder, files)


def _narrowed(name: str, files: Mapping[str, int]) -> str:
    """The deepest folder or file below `name` that holds most of its bytes."""
    total, place = sum(files.values()), name
    while place not in files:
        inner: dict[str, int] = {}
        for path, size in files.items():
            if path.startswith(f"{place}/"):
                child = f"{place}/{path[len(place) + 1 :].partition('/')[0]}"
                inner[child] = inner.get(child, 0) + size
        heaviest = max(inner, key=lambda child: inner[child])
        if inner[heaviest] < _MOST * total:
            return f"{place}/"
        place = heaviest
    return place
