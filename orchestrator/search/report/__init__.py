"""`report.html`: what people read of a run. One file that needs no network."""

from orchestrator.search.report.page import write_report
from orchestrator.search.report.schema import Details

__all__ = ["Details", "write_report"]
