"""Looking at networks: firing rates, figures."""

from sewsnn.analysis.firing import firing_rates

__all__ = ["firing_rates"]
