"""Every test that takes ``device`` runs on the CPU and, where the compiled library has CUDA kernels, on the GPU."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sewsnn.ops.load import NATIVE_DEVICES

# The benchmarks are no part of the package. Last, so that it is the installed sewsnn that is tested.
sys.path.append(str(Path(__file__).parent.parent))

# Convolutions in full precision: what is compared is not their rounding.
torch.backends.cudnn.allow_tf32 = False

settings.register_profile("sewsnn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sewsnn")

_no_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in NATIVE_DEVICES, reason="no CUDA device, or no kernels for it"
)


cuda_param = pytest.param("cuda", marks=[pytest.mark.cuda, _no_cuda])


@pytest.fixture(scope="session", params=["cpu", cuda_param])
def device(request):
    return request.param


@pytest.fixture
def one_thread():
    """For networks of very small tensors: on a busy machine waiting for other threads would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
