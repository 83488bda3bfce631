"""Looking at networks: firing rates, operations, figures."""

from sewsnn.analysis.firing import firing_rates
from sewsnn.analysis.operations import LayerOperations, Operations, count_operations

__all__ = ["LayerOperations", "Operations", "count_operations", "firing_rates"]
