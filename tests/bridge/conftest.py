"""Tests that import SpikingJelly: tests/test_spikingjelly.py runs them once per version, each in its own process."""

import os

if "SEWSNN_TEST_BRIDGE" not in os.environ:
    collect_ignore_glob = ["*.py"]
