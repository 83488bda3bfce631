"""Kernels that a test writes in PTX."""

import host
import numpy as np
import torch
from machine import Machine
from nvcc import Listing

# The kernel of samples.cu that the host launches with 64 threads, and which the text replaces.
NAME = "_ZN7samples12copy_shiftedEPKfPfii"
TEXT = """.version 8.0
.target sm_90
.address_size 64
.visible .entry {name}(
  .param .u64 in, .param .u64 out, .param .u32 from, .param .u32 to
)
{{
  .shared .align 4 .b8 memory[256];
  .reg .b32 %r<40>;
  ld.param.u64 %rd1, [in];
  ld.param.u64 %rd2, [out];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.nc.b32 %r2, [%rd4];
  {body}
  st.global.b32 [%rd5], %r9;
  ret;
}}
"""


def execute(folder, body: str, values=None) -> np.ndarray:
    """Runs a text in 64 threads: %r1 has the number of the thread, %r2 its number of ``values`` as 32 bits; %r9 is the
    result, as 32 bits. ``memory``: 256 bytes of shared memory."""
    file = folder / "written.ptx"
    file.write_text(TEXT.format(name=NAME, body=body))
    x, out = host.Guarded(1, 64, torch.float32), host.Guarded(1, 64, torch.float32)
    bits = np.zeros(64, np.uint32) if values is None else np.ascontiguousarray(values).view(np.uint32)
    x.tensor[0] = torch.from_numpy(bits.view(np.float32).copy())
    with Machine(Listing([file])).run():
        host.module().sample("copy", x.tensor[0].numpy(), out.tensor.numpy())
    return out.tensor[0].numpy().view(np.uint32).copy()
