"""The undisturbed run that tests of whole pipelines compare with."""

from tests.pipeline.conftest import finished

__all__ = ["finished"]
