"""What a disk may hold after a power cut: a model of files and folders, of which only the synced is sure.

Calls are recorded by standing in for `os` functions. After any of them, each folder's list of names may be as
it is or as it was when the folder was last synced, independently of all others, and a file holds its bytes or
those of its last sync (POSIX promises no more; ext4 and XFS keep more).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.blobs import TEMPORARY

_CALLS = ("open", "close", "write", "fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir")

Tree = dict[str, bytes]
"""Files by their path below the root."""


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    names: dict[str, Any] = field(default_factory=dict)
    synced: dict[str, Any] = field(default_factory=dict)


class Disk:
    """The model, fed by `recording`; begins with an empty synced root."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = str(root), _Folder()
        self._open: dict[int, tuple[Any, str]] = {}
        self.states: list[Tree] = []
        """Every distinct state that a cut after any call could have left."""
        self._seen: set[int] = set()
        self.calls: list[str] = []

    @property
    def sure(self) -> Tree:
        """What is there whenever the power is cut now."""
        return dict(_walk(self._top, "", lambda folder: folder.synced, lambda file: file.synced))

    def recording(self, patch: pytest.MonkeyPatch) -> None:
        """Watch the calls of this process from now on."""
        for name in _CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if getattr(self, f"_{name}_")(result, *args, **kwargs):
                self.calls.append(name)
                self._note()
            return result

        return wrapper

    def _note(self) -> None:
        folders = _folders(self._top)
        changed = [folder for folder in folders if folder.names != folder.synced]
        for kept in itertools.product((False, True), repeat=len(changed)):
            current = {id(folder) for folder, keep in zip(changed, kept, strict=True) if keep}
            for data in (lambda file: file.data, lambda file: file.synced):
                names = lambda folder, current=current: (  # noqa: E731
                    folder.names if id(folder) in current else folder.synced
                )
                tree = dict(_walk(self._top, "", names, data))
                mark = hash(tuple(sorted(tree.items())))
                if mark not in self._seen:
                    self._seen.add(mark)
                    self.states.append(tree)

    def _at(self, path: Any, dir_fd: int | None = None) -> tuple[_Folder, str] | None:
        text = os.fspath(path)
        if dir_fd is not None:
            folder, _ = self._open.get(dir_fd, (None, ""))
            return (folder, text) if isinstance(folder, _Folder) else None
        if not text.startswith(self._root + "/"):
            return None
        *parents, name = text[len(self._root) + 1 :].split("/")
        folder = self._top
        for parent in parents:
            folder = folder.names[parent]
        return folder, name

    def _open_(self, fd: int, path: Any, flags: int, *_: Any, dir_fd: int | None = None) -> bool:
        if os.fspath(path) == self._root:
            self._open[fd] = self._top, ""
            return False
        at = self._at(path, dir_fd)
        if at is None:
            return False
        folder, name = at
        if flags & os.O_CREAT and name not in folder.names:
            folder.names[name] = _File()
        self._open[fd] = folder.names[name], name
        return bool(flags & os.O_CREAT)

    def _close_(self, _: Any, fd: int) -> bool:
        self._open.pop(fd, None)
        return False

    def _write_(self, count: int, fd: int, data: Any) -> bool:
        node, _ = self._open.get(fd, (None, ""))
        if isinstance(node, _File):
            node.data += bytes(data[:count])
        return isinstance(node, _File)

    def _fsync_(self, _: Any, fd: int) -> bool:
        node, _name = self._open.get(fd, (None, ""))
        if isinstance(node, _File):
            node.synced = node.data
        elif isinstance(node, _Folder):
            node.synced = dict(node.names)
        return node is not None

    def _mkdir_(self, _: Any, path: Any, *__: Any, dir_fd: int | None = None) -> bool:
        at = self._at(path, dir_fd)
        if at is not None:
            at[0].names[at[1]] = _Folder()
        return at is not None

    def _rename_(self, _: Any, source: Any, target: Any) -> bool:
        one, other = self._at(source), self._at(target)
        if one is not None and other is not None:
            other[0].names[other[1]] = one[0].names.pop(one[1])
        return one is not None

    _replace_ = _rename_

    def _link_(self, _: Any, source: Any, target: Any) -> bool:
        one, other = self._at(source), self._at(target)
        if one is not None and other is not None:
            other[0].names[other[1]] = one[0].names[one[1]]
        return one is not None

    def _unlink_(self, _: Any, path: Any, *, dir_fd: int | None = None) -> bool:
        at = self._at(path, dir_fd)
        if at is not None:
            at[0].names.pop(at[1])
        return at is not None

    _rmdir_ = _unlink_


def _walk(folder: _Folder, prefix: str, names: Any, data: Any) -> Iterator[tuple[str, bytes]]:
    for name, node in names(folder).items():
        if isinstance(node, _Folder):
            yield from _walk(node, f"{prefix}{name}/", names, data)
        else:
            yield f"{prefix}{name}", data(node)


def _folders(folder: _Folder) -> list[_Folder]:
    """All that can be reached by present or synced names, each once."""
    found: dict[int, _Folder] = {}
    waiting = [folder]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            both = [*one.names.values(), *one.synced.values()]
            waiting += [node for node in both if isinstance(node, _Folder)]
    return list(found.values())


def visible(tree: Tree) -> Tree:
    """Without what is being written: no reader looks there."""
    return {name: data for name, data in tree.items() if not name.startswith(TEMPORARY)}


def lay_out(tree: Tree, root: Path) -> None:
    """Make the files of a state."""
    root.mkdir(parents=True)
    for name, data in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
