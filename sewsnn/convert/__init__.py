"""Converts models of other libraries, so that sewsnn's kernels compute them.

>>> import sewsnn
>>> report = sewsnn.convert.from_spikingjelly(net)  # doctest: +SKIP
"""

from sewsnn.convert.report import Left, Replaced, Report
from sewsnn.convert.spikingjelly import from_spikingjelly

__all__ = ["Left", "Replaced", "Report", "from_spikingjelly"]
