"""The devices that tests run on. Without a CUDA device no test is generated for one: a skip then means something."""

import pytest
import torch

from sewsnn.ops.load import NATIVE_DEVICES

HAS_CUDA = torch.cuda.is_available() and "cuda" in NATIVE_DEVICES
#: the parameters of a fixture for tests that need CUDA: none where there is none
CUDA_PARAMS = [pytest.param("cuda", marks=pytest.mark.cuda)] if HAS_CUDA else []
