"""How much a run of the tests tries. SEWSNN_THOROUGH=1 tries all: CONTRIBUTING.md says what."""

import os

THOROUGH = os.environ.get("SEWSNN_THOROUGH", "") not in ("", "0")


def examples(count: int) -> int:
    """How many examples hypothesis tries: so many in a run for a commit, ten times as many in a thorough one."""
    return 10 * count if THOROUGH else count
