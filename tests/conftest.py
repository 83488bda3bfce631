"""Every test that takes ``device`` runs on the CPU and, where the compiled library has CUDA kernels, on the GPU."""

import sys
from pathlib import Path

import pytest
import torch
from devices import CUDA_PARAMS, HAS_CUDA
from hypothesis import settings
from thorough import THOROUGH

# The benchmarks are no part of the package. Last, so that it is the installed sewsnn that is tested.
sys.path.append(str(Path(__file__).parent.parent))

# Convolutions in full precision: what is compared is not their rounding.
torch.backends.cudnn.allow_tf32 = False

settings.register_profile("sewsnn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sewsnn")

_CUDA_ONLY = ["test_cuda.py", "test_cuda_blocks.py", "test_training_cuda.py"]
_THOROUGH_ONLY = ["native/test_sanitizers.py"]  # compiles all kernels once more, with AddressSanitizer
collect_ignore = ([] if HAS_CUDA else _CUDA_ONLY) + ([] if THOROUGH else _THOROUGH_ONLY)


def pytest_report_header(config):
    cuda = f"CUDA cases run on {torch.cuda.get_device_name()}" if HAS_CUDA else "no CUDA device: without CUDA cases"
    return [cuda, "thorough" if THOROUGH else "for a commit: SEWSNN_THOROUGH=1 tries more"]


@pytest.fixture(scope="session", params=["cpu", *CUDA_PARAMS])
def device(request):
    return request.param


@pytest.fixture
def one_thread():
    """For networks of very small tensors: on a busy machine waiting for other threads would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
