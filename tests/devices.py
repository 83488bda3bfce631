"""The devices for tests. Without a CUDA device there are no CUDA tests, so every reported skip has another cause."""

import pytest
import torch

from sewsnn.ops.load import NATIVE_DEVICES

HAS_CUDA = torch.cuda.is_available() and "cuda" in NATIVE_DEVICES
#: the parameters of a fixture for tests that need CUDA; empty without a CUDA device
CUDA_PARAMS = [pytest.param("cuda", marks=pytest.mark.cuda)] if HAS_CUDA else []
#: whether the CUDA device is the pretended one of tests/device
PRETENDED = HAS_CUDA and not torch.version.cuda
