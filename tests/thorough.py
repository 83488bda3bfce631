"""How much a run of the tests covers. CONTRIBUTING.md lists what SEWSNN_THOROUGH=1 adds."""

import os

THOROUGH = os.environ.get("SEWSNN_THOROUGH", "") not in ("", "0")


def examples(count: int) -> int:
    """Returns the number of examples that hypothesis tries: ``count``, or ten times as many in a thorough run."""
    return 10 * count if THOROUGH else count
