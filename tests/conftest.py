"""Shared fixtures. Tests that take ``device`` run on the CPU and, where there is one, on a GPU."""

import pytest
import torch
from hypothesis import settings

from sewsnn.ops import load

settings.register_profile("sewsnn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sewsnn")

HAS_CUDA = torch.cuda.is_available() and "cuda" in load.NATIVE_DEVICES
_no_cuda = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or the library was built without CUDA")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, _no_cuda])])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
