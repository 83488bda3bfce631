"""Tests with a CUDA device run on the pretended one (tests/device), in processes that load it before torch.

Nothing here replaces a GPU: the kernels are compiled for the host. What runs unchanged are the CUDA bindings and
everything above them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thorough import THOROUGH

from sewsnn.ops.load import LIBRARY, NATIVE_DEVICES

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "device"))
import device_build  # noqa: E402
import plant  # noqa: E402

pytestmark = pytest.mark.skipif(
    device_build.why_not() is not None, reason=f"no pretended CUDA device: {device_build.why_not()}"
)

WRITTEN_FOR = "2.13."

# They run in one process: every process imports torch and collects tests for some seconds.
MODULES = ["device/test_on_device.py", "device/test_training_on_device.py"]
MODULES += ["test_training_cuda.py::test_a_run_goes_on_with_the_same_bits", "test_train_step.py", "test_train_loop.py"]
MODULES += ["test_neuron.py", "test_gradients.py", "test_func.py", "test_step_mode.py", "test_cuda.py"]
MODULES += ["test_bn_neuron.py", "test_bn_layer.py", "test_bn_autograd.py", "test_bn_layout.py", "test_fuse.py"]
MODULES += ["test_bn_statistics.py", "test_bn_errors.py", "test_packed.py", "test_cuda_blocks.py"]
MODULES += ["test_layout.py", "test_properties.py", "test_quick_call.py", "test_max_pool.py", "test_bn_pooled.py"]


@pytest.fixture(scope="module")
def device():
    """The folder of the built device. A torch whose internals have changed skips these tests, with the reason; beside
    the torch for which the device was written, a failed compilation is a failure."""
    try:
        return device_build.build()
    except RuntimeError as error:
        text = str(error)
        if "pretended_torch" in text and "error:" in text and not torch.__version__.startswith(WRITTEN_FOR):
            pytest.skip(f"the pretended device does not compile beside torch {torch.__version__}:\n{text[-2000:]}")
        raise


def run(device: Path, *arguments: str, timeout: int = 1700) -> subprocess.CompletedProcess:
    """Runs pytest on the device."""
    command = [sys.executable, str(TESTS / "device"), "-q", "-m", "cuda", "-p", "no:cacheprovider", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SEWSNN_LIBRARY"))}
    env |= {"SEWSNN_DEVICE": str(device), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, timeout=timeout)


def test_cuda_tests(device):
    """The tests of these modules with a CUDA device; in a thorough run those of all modules."""
    done = run(device, *(["tests"] if THOROUGH else [f"tests/{name}" for name in MODULES]))
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
    print(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", ["tiny", "tiny_blocks"])
def test_smoke_stages_of_the_gpu_run(stage, device):
    """The first stages of ``python -m benchmarks.gpu``, which compare kernels on small shapes. A commit takes every
    fifth case, because tests/native compares every kernel; a thorough run takes all."""
    command = [sys.executable, str(TESTS / "device" / "run_module.py"), f"benchmarks.gpu.{stage}", "--device", "cuda"]
    command += ["--every", "1" if THOROUGH else "5"]
    env = {name: value for name, value in os.environ.items() if name != "SEWSNN_LIBRARY"}
    env |= {"SEWSNN_DEVICE": str(device), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "cases agree" in done.stdout, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


FINDS = {
    "no device guard": ("another_stream", "by a kernel on cuda:0|current one of the current device"),
    "a workspace that is too small": ("other_device", "outside of the device's memory"),
    "a gradient that is not widened": ("bits_of_a_sum", "outside of the device's memory"),
    "the default stream": ("another_stream", "was launched on stream"),
    # The next block may lie where the freed one was: then results are wrong.
    "a temporary freed early": ("other_device", "outside of the device's memory|AssertionError|Tensor-likes"),
}


@pytest.mark.parametrize("fault", plant.FAULTS if THOROUGH else ["no device guard", "a temporary freed early"])
def test_a_planted_fault_is_found(fault, device, tmp_path):
    words, message = FINDS[fault]
    folder = plant.build(fault, device, TESTS.parent / "csrc", tmp_path)
    done = run(folder, "tests/device/test_on_device.py", "-k", words)
    assert done.returncode == 1
    assert re.search(message, done.stdout), done.stdout[-4000:]


def test_the_library_that_nvcc_built(device):
    """Its bindings run up to the launch, and every op raises the driver's error."""
    library = Path(LIBRARY)
    if "cuda" not in NATIVE_DEVICES:
        pytest.skip("the compiled library has no CUDA kernels")
    command = [sys.executable, str(TESTS / "device" / "nvcc_library.py"), str(device), str(library.resolve())]
    env = {name: value for name, value in os.environ.items() if name != "SEWSNN_LIBRARY"}
    done = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
