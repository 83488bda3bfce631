"""Tests that import SpikingJelly: tests/test_spikingjelly.py runs them once per version, each in its own process."""

import os

import pytest
import torch

if "SEWSNN_TEST_BRIDGE" not in os.environ:
    collect_ignore_glob = ["*.py"]
else:
    torch.set_num_threads(1)  # both versions run at the same time


@pytest.fixture
def fused(monkeypatch):
    """Collects the calls in which batch norm and neuron ran as one op, each as the connection in the op."""
    from sewsnn.convert import bridge, fusion
    from sewsnn.ops.options import NONE, SUM

    calls, joined, by_op = [], bridge.joined, fusion.by_op

    def counted(x, node):
        result = joined(x, node)
        if isinstance(result, torch.Tensor):
            calls.append(SUM if x.shortcut is not None else NONE)
        return result

    monkeypatch.setattr(bridge, "joined", counted)
    monkeypatch.setattr(fusion, "by_op", lambda z, s, plan: calls.append(plan.connect) or by_op(z, s, plan))
    return calls
