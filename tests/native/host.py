"""The CUDA kernels on the host: calls the module (host_build.py) with tensors, and wraps it as a neuron for autograd.

Buffers have exactly the requested alignment and lie between guards: outputs between bytes that must not change,
inputs between NaNs that must not be read.
"""

import functools
import importlib.util
import os
import re
import subprocess
import weakref
from pathlib import Path

import numpy as np
import torch
from host_build import build

from sewsnn.ops.neuron import checkpoint_count, dense_strides
from sewsnn.ops.reference import NEURONS, state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

KINDS = {"if": "IF", "lif": "LIF", "plif": "PLIF"}
GUARD = 256  # bytes on either side of a buffer


@functools.cache
def module():
    """Returns the module. SEWSNN_HOST_MODULE names a module that is already built."""
    path = os.environ.get("SEWSNN_HOST_MODULE") or build()
    spec = importlib.util.spec_from_file_location("sewsnn_host", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def library() -> Path:
    """Returns the file with the kernels."""
    return Path(module().__file__).parent / "libsewsnn_host_kernels.so"


def kernels(path: Path, family: str = "") -> set[str]:
    """Returns the mangled names of the kernels in a library: those named ``<family>_...``, or those of no family."""
    text = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    # Names like sewsnn::generic::forward_kernel<...>; names that are local to a function begin with _ZZ.
    names = {name for name in (line.split()[-1] for line in text.splitlines()) if re.match(r"_ZN\w*?_kernelI", name)}
    found = {name: re.search(r"\d(bn_pooled|bn|max_pool|pool)_\w*kernelI", name) for name in names}
    return {name for name, match in found.items() if (match.group(1) if match else "") == family}


class Guarded:
    """A tensor between guards: ``rows`` times ``row`` numbers, rows ``stride`` numbers apart, ``offset`` numbers off
    a 64-byte boundary. With AddressSanitizer the guards may not be touched at all."""

    def __init__(self, rows: int, row: int, dtype: torch.dtype, stride: int | None = None, offset: int = 0):
        stride = row if stride is None else stride
        size = torch.empty(0, dtype=dtype).element_size()
        span = ((rows - 1) * stride + row) * size if rows and row else 0
        self.raw = np.full(2 * GUARD + 64 + offset * size + span, 0xFF, np.uint8)  # 0xff..: NaN in all four dtypes
        begin = -self.raw.ctypes.data % 64 + GUARD + offset * size
        self.begin, self.end = begin, begin + span
        flat = torch.from_numpy(self.raw[begin : begin + span]).view(dtype)
        if module().sanitized:
            module().guard(self.raw, self.begin, self.end)
            # NumPy reuses small blocks without freeing them.
            weakref.finalize(self.raw, module().unguard, self.raw.ctypes.data, self.raw.nbytes)
        self.tensor = flat.as_strided((rows, row), (stride, 1)) if span else torch.empty(rows, row, dtype=dtype)

    def check(self, name: str) -> None:
        """Raises if a byte of the guards has changed."""
        if module().sanitized:
            module().unguard(self.raw.ctypes.data, self.raw.nbytes)
        if not ((self.raw[: self.begin] == 0xFF).all() and (self.raw[self.end :] == 0xFF).all()):
            raise AssertionError(f"a kernel wrote beside {name}")


def as_array(t: torch.Tensor | None):
    """Returns the tensor's memory as a NumPy array; bfloat16 as uint16."""
    if t is None:
        return None
    t = t.detach()
    return t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()


class Layout:
    """Memory layout of operands: ``offset`` numbers off alignment, ``gap`` numbers between the rows of inputs."""

    def __init__(self, offset: int = 0, gap: int = 0):
        self.offset, self.gap = offset, gap

    def input(self, t: torch.Tensor | None):
        """Returns a guarded copy of ``[rows, M]``; repeated rows stay repeated."""
        if t is None:
            return None
        rows = 1 if t.stride(0) == 0 else len(t)
        guarded = Guarded(rows, t.shape[1], t.dtype, t.shape[1] + self.gap, self.offset)
        guarded.tensor.copy_(t[:rows])
        return guarded.tensor.expand(t.shape)

    def gradient(self, t: torch.Tensor):
        """The same for gradients; also returns whether it is one number for all neurons, in the form of csrc/ops."""
        if not is_scalar(t):
            return self.input(t), False
        return Layout().input(t.as_strided((len(t), module().broadcast), (t.stride(0), 0))), True

    def output(self, rows: int, row: int, dtype: torch.dtype) -> Guarded:
        return Guarded(rows, row, dtype, None, self.offset)


#: the reports of the last calls of module().forward and .backward
reports: list[dict] = []


class HostNeuron(torch.autograd.Function):
    """Calls the kernels on the CPU as csrc/ops does, with the same params and buffers.

    x is ``[T, ...]``; v and grad_v are ``[...]`` or ``[T, ...]``, with an axis of the states before it if there are
    several.
    """

    @staticmethod
    def forward(ctx, x, v, leak, layout, spec, v_mode, needs_grad, schedule):
        T, shape, states = len(x), x.shape, len(NEURONS[spec.kind].states)
        ctx.strides = dense_strides(x)
        M = shape[1:].numel()
        ctx.flat = flat = lambda t: t.as_strided((len(t), M), (t.stride(0), 0 if is_scalar(t) else 1))
        state = state_dtype(x.dtype)
        s = layout.output(T, M, x.dtype)
        rows = states * (T if v_mode == 2 else 1)
        v_out = layout.output(rows, M, state) if v_mode else None
        kept = layout.output(states * checkpoint_count(T), M, state) if needs_grad else None
        initial = None if v is None else v if states > 1 else v[None]
        inputs = {"x": layout.input(flat(x)), "v0": None if v is None else layout.input(flat(initial))}
        ctx.neuron = {
            "numbers": list(map(float, spec.numbers)),
            "leak": as_array(leak),
            "inner": ctx.strides[2] if leak is not None and leak.dim() == 2 and len(shape) > 2 else 1,
        }
        reports.append(
            module().forward(
                **ctx.neuron,
                **{name: as_array(t) for name, t in inputs.items()},
                s=as_array(s.tensor),
                v=None if v_out is None else as_array(v_out.tensor),
                v_seq=v_mode == 2,
                checkpoints=as_array(kept.tensor) if kept is not None and kept.tensor.numel() else None,
                schedule=schedule,
            )
        )
        for name, out in (("s", s), ("v", v_out), ("checkpoints", kept)):
            if out is not None:
                out.check(name)
        ctx.inputs, ctx.leak, ctx.layout, ctx.states, ctx.v_mode = inputs, leak, layout, states, v_mode
        ctx.kept, ctx.schedule, ctx.shape = kept, schedule, shape
        ctx.set_materialize_grads(False)
        s = s.tensor.as_strided(shape, ctx.strides)
        if v_mode == 0:
            return s, None
        return s, v_out.tensor.as_strided(*ctx_shape(ctx, v_mode == 2))

    @staticmethod
    def backward(ctx, grad_s, grad_v):
        T, M = len(ctx.inputs["x"]), ctx.inputs["x"].shape[1]
        layout, state = ctx.layout, state_dtype(ctx.inputs["x"].dtype)
        need_v, need_leak = ctx.needs_input_grad[1], ctx.needs_input_grad[2]

        def operand(grad, strides):
            if not is_scalar(grad) and grad.stride()[1:] != tuple(strides[1:]):
                grad = torch.empty_strided(grad.shape, strides, dtype=grad.dtype).copy_(grad)
            return layout.gradient(ctx.flat(grad))

        v_strides = ctx.strides if ctx.v_mode == 2 else [M, *ctx.strides[1:]]
        grads = [] if grad_v is None else [grad_v] if ctx.states == 1 else list(grad_v)
        grads = [operand(grad if ctx.v_mode == 2 else grad[None], v_strides) for grad in grads]
        if grad_s is None:
            grad_s = torch.zeros((), dtype=ctx.inputs["x"].dtype).expand(ctx.shape)
        grad_s, broadcast_s = operand(grad_s, ctx.strides)
        grad_x = layout.output(T, M, ctx.inputs["x"].dtype)
        grad_v0 = layout.output(ctx.states, M, state) if need_v else None
        rows = 1 if ctx.leak is None or ctx.leak.dim() < 2 else len(ctx.leak)
        grad_leak = Guarded(rows, ctx.leak.numel() // rows, state) if need_leak else None
        kept = ctx.kept.tensor if ctx.kept is not None and ctx.kept.tensor.numel() else None
        reports.append(
            module().backward(
                **ctx.neuron,
                **{name: as_array(t) for name, t in ctx.inputs.items()},
                checkpoints=as_array(kept),
                grad_s=as_array(grad_s),
                broadcast_s=broadcast_s,
                grad_v=[as_array(grad) for grad, _ in grads],
                broadcast_v=any(broadcast for _, broadcast in grads),
                v_seq=ctx.v_mode == 2,
                grad_x=as_array(grad_x.tensor),
                grad_v0=None if grad_v0 is None else as_array(grad_v0.tensor),
                grad_leak=None if grad_leak is None else as_array(grad_leak.tensor),
                schedule=ctx.schedule,
            )
        )
        for name, out in (("grad_x", grad_x), ("grad_v0", grad_v0), ("grad_leak", grad_leak)):
            if out is not None:
                out.check(name)
        return (
            grad_x.tensor.as_strided(ctx.shape, ctx.strides),
            grad_v0.tensor.as_strided(*ctx_shape(ctx, False)) if need_v else None,
            grad_leak.tensor.reshape(ctx.leak.shape) if need_leak else None,
            *(None,) * (len(ctx.needs_input_grad) - 3),
        )


def ctx_shape(ctx, sequence: bool):
    """Returns sizes and strides of the states, of all time-steps if ``sequence``."""
    T, M = ctx.shape[0], ctx.shape[1:].numel()
    sizes, strides = (ctx.shape, ctx.strides) if sequence else (ctx.shape[1:], ctx.strides[1:])
    if ctx.states == 1:
        return tuple(sizes), tuple(strides)
    return (ctx.states, *sizes), (M * (T if sequence else 1), *strides)


def is_scalar(t: torch.Tensor) -> bool:
    """One number per row for all neurons, as ``[rows, ...]`` with strides of 0."""
    sized = [stride for size, stride in zip(t.shape[1:], t.stride()[1:], strict=True) if size > 1]
    return bool(sized) and not any(sized)


def multistep(
    name: str,
    x: torch.Tensor,
    v: torch.Tensor | None = None,
    w: torch.Tensor | None = None,
    *,
    layout: Layout = Layout(),  # noqa: B008
    schedule: int = 0,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate_function=ATan(2.0),  # noqa: B008
    store_v_seq: bool = False,
    store_v: bool = True,
):
    """``functional.<name>_multistep`` with the CUDA kernels on the host. Each time-step of x must be dense."""
    spec = NeuronSpec(KINDS[name], surrogate_function, tau, decay_input, v_threshold, v_reset, detach_reset)
    leak = None if w is None else w.to(state_dtype(x.dtype)).reshape(()).sigmoid()
    return by_spec(spec, x, v, leak, layout=layout, schedule=schedule, v_mode=2 if store_v_seq else int(store_v))


def by_spec(spec: NeuronSpec, x, v=None, leak=None, *, layout: Layout = Layout(), schedule: int = 0, v_mode: int = 1):  # noqa: B008
    """Any neuron with the CUDA kernels on the host. ``leak``: the learnt parameters as the ops take them."""
    v = None if v is None else v.to(state_dtype(x.dtype))
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, v, leak))
    return HostNeuron.apply(x, v, leak, layout, spec, v_mode, needs_grad, schedule)
