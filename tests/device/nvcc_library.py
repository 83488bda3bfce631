"""Calls every op of the library that nvcc built, on the pretended device: a program, because the device must be loaded
before torch.

    python tests/device/nvcc_library.py DEVICE_FOLDER LIBRARY

The kernels cannot run, because there is no driver. Everything before the launch does: the checks, the memory, the
current stream. Each op must then raise the driver's error, and nothing may be left behind. An op without elements
launches nothing and raises nothing.
"""

import os
import sys
from pathlib import Path

import pretend

device = pretend.install(Path(sys.argv[1]), kernels=False)
os.environ["SEWSNN_LIBRARY"] = sys.argv[2]

import torch  # noqa: E402

from sewsnn.ops.load import NATIVE_DEVICES, NATIVE_ERROR, cuda_problem  # noqa: E402
from sewsnn.ops.options import numbers_of  # noqa: E402

ops = torch.ops.sewsnn
x = torch.rand(4, 2, 8, 6, 6, device="cuda")
still, pooled, grad = x[0].clone(), torch.rand(4, 2, 8, 3, 3, device="cuda"), torch.rand_like(x)
channel, statistics = torch.ones(8, device="cuda"), torch.ones(2, 8, device="cuda")
counted = torch.zeros((), dtype=torch.int64, device="cuda")
none = torch.empty(0, device="cuda")
neuron = (1, 2.0, True, 1.0, 0.0, 0, 2.0, True)  # LIF
block, stem = (1e-5, 0, 0, *neuron), (1e-5, 4, *neuron)
numbers = numbers_of(block)
norm = (statistics, channel, channel, None)
positions, flags = torch.zeros(4, 2, 8, 3, 3, dtype=torch.uint8, device="cuda"), (True, False, False, False)
running = (channel.clone(), channel.clone(), counted)
calls = {
    "neuron_forward": lambda x: (x, None, None, *neuron, 1, True),
    "neuron_backward": lambda x: (x, None, x, None, None, none, *neuron, 1, False, False),
    "bn_statistics": lambda x: (x, 0, False),
    "bn_take_statistics": lambda x: (x, *running, (0, 0.1)),
    "bn_update": lambda x: (statistics, 0.1, 9.0, *running[:2]),
    "bn_neuron_train": lambda x: (x, None, channel, channel, None, *running, (*numbers, 0.1, 1, True, False)),
    "bn_neuron_forward": lambda x: (x, None, *norm, *block, 1, True, False, True),
    "bn_neuron_sum": lambda x: (x, x, *norm, 1e-5, 5, 0, *neuron, 1, True, True),
    "bn_neuron_backward": lambda x: (x, None, x, None, *norm, None, (*numbers, True, False, False)),
    "bn_neuron_reduce": lambda x: (x, None, x, None, *norm, none, *block, False),
    "bn_neuron_apply": lambda x: (x, x, None, *norm, none, statistics, 9.0, *block, False),
    "bn_neuron_pool_forward": lambda x: (still, *norm, *stem, True),
    "bn_neuron_pool_reduce": lambda x: (pooled, still, *norm, *stem, False),
    "bn_neuron_pool_apply": lambda x: (pooled, still, *norm, statistics, 9.0, *stem),
    "max_pool": lambda x: (x, channel, 2, 2, 0, True),
    "max_pool_statistics": lambda x: (x, channel, *running, (0.1, 2, 2, 0, True)),
    "max_pool_backward": lambda x: (pooled, positions, x, torch.ones(3, 8, device="cuda"), 6, 6, 2, 2, 0),
    "bn_neuron_pooled": lambda x: (x, None, *norm, *block, 0, True, 2, 2, 0, True),
    "bn_neuron_pooled_backward": lambda x: (pooled, positions, x, None, *norm, none, (*numbers, 2, 2, 0, *flags)),
    "unpack_spikes": lambda x: (torch.ones(9, dtype=torch.uint8, device="cuda"), [72], [1], torch.float32),
}
assert NATIVE_ERROR is None and "cuda" in NATIVE_DEVICES, NATIVE_ERROR
assert "driver" in cuda_problem(0), cuda_problem(0)
registered = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "sewsnn::" in name}
assert registered == set(calls), registered ^ set(calls)
for name, arguments in calls.items():
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sewsnn::{name}", "CUDA"), name
    before = device.allocated()
    try:
        getattr(ops, name)(*arguments(x))
    except RuntimeError as error:
        assert f"sewsnn: {name} could not be launched" in str(error) and "CUDA driver" in str(error), (name, error)
    else:
        raise AssertionError(f"{name} raised nothing")
    # The counters of a stream stay: 32 KiB, and 1 MiB for graphs, once.
    assert device.allocated() - before in (0, (1 << 15) + (1 << 20)), (name, device.allocated() - before)
empty = torch.rand(4, 0, 8, 6, 6, device="cuda")
for name in ("neuron_forward", "neuron_backward", "bn_neuron_forward", "bn_neuron_reduce", "bn_neuron_apply"):
    getattr(ops, name)(*calls[name](empty))
assert device.problems() == ""
print(f"{len(calls)} ops reach their launch")
