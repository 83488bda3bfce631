"""Models of other libraries, computed by sewsnn."""

from sewsnn.convert.report import Left, Replaced, Report
from sewsnn.convert.spikingjelly import from_spikingjelly

__all__ = ["Left", "Replaced", "Report", "from_spikingjelly"]
