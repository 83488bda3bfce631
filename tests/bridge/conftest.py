"""Tests that import SpikingJelly: tests/test_spikingjelly.py runs them once per version, each in its own process."""

import os

import torch

if "SEWSNN_TEST_BRIDGE" not in os.environ:
    collect_ignore_glob = ["*.py"]
else:
    torch.set_num_threads(1)  # both versions run at the same time
