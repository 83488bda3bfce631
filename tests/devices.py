"""The devices tests run on."""

import pytest
import torch

from sewsnn.ops.load import NATIVE_DEVICES

_no_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in NATIVE_DEVICES, reason="no CUDA device, or no kernels for it"
)
cuda_param = pytest.param("cuda", marks=[pytest.mark.cuda, _no_cuda])
