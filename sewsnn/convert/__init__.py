"""Converts models of other libraries, so that sewsnn's kernels compute them.

>>> import sewsnn
>>> report = sewsnn.convert.from_spikingjelly(net)  # doctest: +SKIP
"""

from sewsnn.convert.report import Left, Replaced, Report
from sewsnn.convert.spikingjelly import from_spikingjelly
from sewsnn.convert.without_cupy import Installed, install

__all__ = ["Installed", "Left", "Replaced", "Report", "from_spikingjelly", "install"]
