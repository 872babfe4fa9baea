from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from orchestrator.errors import ExecutionError
from orchestrator.runtime.package import open_package


@pytest.mark.parametrize("name", ["other.txt", "model/data/aotinductor/model/model.so"])
def test_a_file_that_is_no_package_is_an_error_that_callers_know(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(name, b"nothing of use")
    with pytest.raises(ExecutionError, match="cannot be loaded"):
        open_package(path)
