"""One undisturbed run for the tests that compare with it: the tiny pipeline with less to compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.pipelines import undisturbed
from tests.pipeline.tiny import Finished


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The run, executed in this process on a Ray of its own."""
    with undisturbed(tmp_path_factory.mktemp("undisturbed")) as found:
        yield found
