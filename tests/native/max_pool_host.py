"""Calls the kernels of max pooling, CPU and CUDA, on guarded buffers."""

import bn_host
import host
import torch
from host import Guarded, as_array, module

from sewsnn.ops.reference import state_dtype

#: kernel, stride and padding of the usual windows
USUAL = ((3, 2, 1), (2, 2, 0))
ANY = ((3, 1, 1), (2, 1, 0), (3, 3, 0), (2, 2, 1), (5, 3, 2), (4, 6, 1), (15, 7, 7))


def out_size(size, window):
    kernel, stride, padding = window
    return (size + 2 * padding - kernel) // stride + 1


class Pool:
    """Max pooling of images ``[..., C, H, W]`` by one kind of kernels, ``"cuda"`` or an instruction set of the CPU."""

    def __init__(self, kernels, window, channels_last, schedule=0, offset=0):
        self.kernels, self.window, self.last, self.schedule, self.offset = (
            kernels,
            window,
            channels_last,
            schedule,
            offset,
        )
        self.reports = {}

    def flat(self, t):
        """A guarded copy in memory order."""
        if t is None:
            return None
        guarded = Guarded(1, t.numel(), t.dtype, offset=self.offset)
        guarded.tensor.copy_((t.movedim(-3, -1) if self.last else t).reshape(1, -1))
        return guarded.tensor

    def shaped(self, t, shape):
        return t.view(*shape[:-3], *shape[-2:], shape[-3]).movedim(-1, -3) if self.last else t.view(shape)

    def numbers(self, shape):
        *outer, C, height, width = shape
        kernel, stride, padding = self.window
        return {
            "images": torch.Size(outer).numel(),
            "channels": C,
            "height": height,
            "width": width,
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "channels_last": self.last,
        }

    def pooled(self, shape):
        return torch.Size([*shape[:-2], *(out_size(size, self.window) for size in shape[-2:])])

    def call(self, name, shape, inputs, outputs):
        arguments = self.numbers(shape) | {key: as_array(t) for key, t in inputs.items()}
        arguments |= {key: as_array(out.tensor) for key, out in outputs.items()}
        self.reports[name] = getattr(module(), name)(self.kernels, arguments, self.schedule)
        for key, out in outputs.items():
            out.check(key)

    def forward(self, x, weight=None):
        """Returns out and positions."""
        shape = self.pooled(x.shape)
        out = Guarded(1, shape.numel(), x.dtype, offset=self.offset)
        positions = Guarded(1, shape.numel(), torch.uint8, offset=self.offset)
        inputs = {"x": self.flat(x), "weight": weight}
        self.call("max_pool", x.shape, inputs, {"out": out, "positions": positions})
        return self.shaped(out.tensor, shape), self.shaped(positions.tensor, shape)

    def with_statistics(self, x, weight=None, momentum=0.1):
        """Returns out, positions, statistics and running statistics, which begin with 1 and 2."""
        shape, C, state = self.pooled(x.shape), x.shape[-3], state_dtype(x.dtype)
        outputs = {
            "out": Guarded(1, shape.numel(), x.dtype, offset=self.offset),
            "positions": Guarded(1, shape.numel(), torch.uint8, offset=self.offset),
            "statistics": Guarded(2, C, state),
        }
        running = {name: torch.full((C,), start, dtype=state) for name, start in (("mean", 1.0), ("var", 2.0))}
        arguments = self.numbers(x.shape) | {"momentum": momentum}
        arguments |= {"x": as_array(self.flat(x)), "weight": as_array(weight)}
        arguments |= {f"running_{name}": as_array(t) for name, t in running.items()}
        arguments |= {key: as_array(out.tensor) for key, out in outputs.items()}
        self.reports["max_pool_statistics"] = module().max_pool_statistics(arguments, self.schedule)
        for key, out in outputs.items():
            out.check(key)
        out, positions = (self.shaped(outputs[name].tensor, shape) for name in ("out", "positions"))
        return out, positions, outputs["statistics"].tensor, running

    def backward(self, grad_out, positions, shape, x=None, affine=None):
        grad_x = Guarded(1, torch.Size(shape).numel(), grad_out.dtype, offset=self.offset)
        inputs = {"grad_out": self.flat(grad_out), "positions": self.flat(positions), "x": self.flat(x)}
        self.call("max_pool_backward", shape, inputs | {"affine": affine}, {"grad_x": grad_x})
        return self.shaped(grad_x.tensor, shape)


class PooledKernels(bn_host.Kernels):
    """The kernels of batch norm + neuron + connection with a pooled output."""

    def __init__(self, block, window, schedule=0):
        super().__init__(block, schedule=schedule)
        self.pool = Pool("cuda", window, block.channels_last)

    def given(self, z, shortcut, norm, leak, T):
        inputs, numbers = self.shared(z, shortcut, norm, leak, T)
        return inputs, numbers | self.pool.numbers(z.shape[1:])

    def pooled_forward(self, z, shortcut, norm, leak=None):
        """Returns the pooled output and the positions."""
        shape = self.pool.pooled(z.shape)
        M = shape[1:].numel()
        inputs, numbers = self.given(z, shortcut, norm, leak, len(z))
        out = {"out": host.Guarded(len(z), M, z.dtype), "positions": host.Guarded(len(z), M, torch.uint8)}
        got = self.call("pooled_forward", inputs, out, **numbers)
        return self.pool.shaped(got["out"].flatten(), shape), self.pool.shaped(got["positions"].flatten(), shape)

    def pooled_backward(self, z, norm, grad_out, positions, checkpoints, leak=None, dense=False):
        """Returns the gradients of z, of the output (``dense``), and the sums, and of the leak."""
        T, M, C = len(z), z[0].numel(), z.shape[2]
        inputs, numbers = self.given(z, None, norm, leak, T)
        numbers["connect"] = 0
        inputs |= {"checkpoints": checkpoints}
        inputs |= {"grad_out": self.pool.flat(grad_out), "positions": self.pool.flat(positions)}
        out = {
            "sums": host.Guarded(2, C, norm.mean.dtype),
            "grad_leak": None if leak is None else host.Guarded(1, 1, leak.dtype),
        }
        reduced = self.call("pooled_reduce", inputs, out, **numbers)
        out = {
            "grad_z": self.layout.output(T, M, z.dtype),
            "grad_shortcut": self.layout.output(T, M, z.dtype) if dense else None,
        }
        numbers["count"] = float(T * M // C)
        got = self.call("pooled_apply", inputs | {"sums": reduced["sums"]}, out, **numbers)
        unflat = lambda t: None if t is None else bn_host.shaped(t, z.shape, self.block)  # noqa: E731
        return (
            unflat(got["grad_z"]),
            unflat(got.get("grad_shortcut")),
            reduced["sums"],
            reduced.get("grad_leak"),
        )
