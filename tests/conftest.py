"""Every test that takes ``device`` runs on the CPU and, where the compiled library has CUDA kernels, on the GPU."""

import sys
from pathlib import Path

import pytest
import torch
from devices import cuda_param
from hypothesis import settings

# The benchmarks are no part of the package. Last, so that it is the installed sewsnn that is tested.
sys.path.append(str(Path(__file__).parent.parent))

# Convolutions in full precision: what is compared is not their rounding.
torch.backends.cudnn.allow_tf32 = False

settings.register_profile("sewsnn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sewsnn")


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
