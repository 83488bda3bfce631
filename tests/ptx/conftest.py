"""The tests of this folder execute what nvcc writes. They are skipped where there is no nvcc.

test_ptx_neuron.py, test_ptx_bn.py, test_ptx_pool.py and test_ptx_shim.py have the bodies of tests/native. A thorough
run takes all of them, another run those of ``OFTEN``, with float32 and bfloat16.
"""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "native")]

import pytest  # noqa: E402
import torch  # noqa: E402
from machine import Machine  # noqa: E402
from nvcc import Listing, compiled, compiled_sample, find_nvcc, library_ptx  # noqa: E402
from thorough import THOROUGH  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16)
OFTEN = {
    "test_ptx_neuron": {"test_sizes", "test_misaligned_views", "test_nan_and_infinity", "test_repeated_input"},
    "test_ptx_bn": {"test_every_shape", "test_other_norms", "test_packed_spikes", "test_statistics_of_many_elements"},
    "test_ptx_pool": {"test_sizes", "test_wide_images"},
}
OFTEN["test_ptx_neuron"] |= {"test_gradients_of_sums", "test_surrogates"}
OFTEN["test_ptx_bn"] |= {"test_running_statistics", "test_unpacked_spikes", "test_still_image", "test_misaligned_views"}
SELDOM = {"test_batch_norm_budget"}  # takes half a minute


def chosen(item) -> bool:
    """Whether to run a test of this folder."""
    name, module = item.originalname, item.path.stem
    values = item.callspec.params if hasattr(item, "callspec") else {}
    # Bodies of tests/native for the GPU, and for the CPU's own kernels of the stem.
    if "kernels" in values and values["kernels"] != ("cuda" if module == "test_ptx_pool" else "host"):
        return False
    if THOROUGH:
        return True
    return values.get("dtype", DTYPES[0]) in DTYPES and name not in SELDOM and name in OFTEN.get(module, {name})


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if HERE in item.path.parents and not chosen(item)]
    config.hook.pytest_deselected(items=left_out)
    left_out = set(left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """The PTX of the kernels, executed by the host module: that of the compiled library if it has some."""
    if find_nvcc() is None:
        warnings.warn("nvcc was not found: what nvcc makes of the kernels is NOT tested", stacklevel=1)
        pytest.skip("nvcc was not found")
    if files := library_ptx(tmp_path_factory.mktemp("ptx")):
        return Machine(Listing([*files, compiled_sample()]))
    return Machine(Listing(compiled(without=() if THOROUGH else ("half", "double"))))


@pytest.fixture
def ptx(machine, request, monkeypatch):
    """Launches execute PTX during the test, and a body of tests/native takes only dtypes that are compiled."""
    if not THOROUGH:
        source = sys.modules.get(request.function.__module__)
        if getattr(source, "DTYPES", None):
            monkeypatch.setattr(source, "DTYPES", DTYPES)
    with machine.run():
        yield machine
