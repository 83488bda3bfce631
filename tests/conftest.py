"""Every test with the argument ``device`` runs on the CPU, and on the GPU if the compiled library has CUDA kernels."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from devices import CUDA_PARAMS, HAS_CUDA, PRETENDED
from hypothesis import settings
from thorough import THOROUGH

# The package does not contain the benchmarks. Their path comes last, so that the tests import the installed sewsnn.
sys.path.append(str(Path(__file__).parent.parent))

# Convolutions run in full precision, because the comparisons allow no TF32 rounding.
torch.backends.cudnn.allow_tf32 = False

settings.register_profile("sewsnn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sewsnn")

_CUDA_ONLY = ["test_cuda.py", "test_cuda_blocks.py", "test_training_cuda.py"]
_THOROUGH_ONLY = ["native/test_sanitizers.py"]  # compiles all kernels again with AddressSanitizer
# These run only in a process with the pretended CUDA device (tests/device).
_PRETENDED_ONLY = ["device/test_on_device.py", "device/test_training_on_device.py"]
collect_ignore = ([] if HAS_CUDA else _CUDA_ONLY) + ([] if THOROUGH else _THOROUGH_ONLY)
collect_ignore += [] if PRETENDED else _PRETENDED_ONLY


# Modules that take more than half a minute. They start first, so that no process ends alone with one of them.
_LONG = {"bn_kernels", "kernels", "distributed", "train", "export", "spikingjelly", "resume", "event_training"}
_LONG |= {"extending", "compile", "lost_logs", "recipes", "snippets", "functional", "machine_code", "pretended_device"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


def pytest_report_header(config):
    cuda = f"CUDA cases run on {torch.cuda.get_device_name()}" if HAS_CUDA else "no CUDA device: without CUDA cases"
    return [cuda, "thorough" if THOROUGH else "for a commit: SEWSNN_THOROUGH=1 tries more"]


@pytest.fixture(scope="session", params=["cpu", *CUDA_PARAMS])
def device(request):
    return request.param


@pytest.fixture
def one_thread():
    """Runs torch with one thread: with very small tensors on a busy machine, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_digits(monkeypatch):
    """The dataset of digits has 240 images for training and 60 for tests."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    few = SimpleNamespace(images=digits.images[:300], target=digits.target[:300])
    monkeypatch.setattr(datasets, "load_digits", lambda: few)


@pytest.fixture
def tape(monkeypatch):
    """The recorder that every run with ``train.cuda_graph`` takes: a tape of operations stands for the CUDA graph."""
    from graph_tape import Recorder

    from sewsnn.train import graph

    recorder = Recorder()
    monkeypatch.setattr(graph, "recorder", lambda config, *_: recorder if config.train.cuda_graph else None)
    return recorder
