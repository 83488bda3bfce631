"""Batch norm + neuron + connection: the CUDA kernels on the host, and the formulas of core/bn_params.h in torch."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import host
import numpy as np
import torch

from sewsnn.ops import reference
from sewsnn.ops.neuron import checkpoint_count
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

CONNECT = {None: 0, "add": 1, "and": 2, "iand": 3, "add_before": 4}
SUM = {"sum": 5}  # with two results; test_bn_sum_kernels.py


@dataclass
class Block:
    """The common settings of forward and backward. Tensors are ``[T, images, C, height, width]`` in logical order;
    ``channels_last`` is their memory order."""

    neuron: str = "if"  # or the name of a kind
    tau: float = 2.0
    leak: float | list | None = None  # the learnt parameters as the ops take them
    extra: tuple[float, ...] = ()
    connect: str | None = None
    spiking: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    decay_input: bool = True
    surrogate: object = field(default_factory=lambda: ATan(2.0))
    eps: float = 1e-5
    channels_last: bool = True
    still: bool = False  # z is [1, ...], shown T times
    normalised: bool = True  # False: y = z
    affine: bool = True  # False: no weight, no bias

    def spec(self):
        settings = (self.surrogate, self.tau, self.decay_input, self.v_threshold, self.v_reset, self.detach_reset)
        return NeuronSpec(host.KINDS.get(self.neuron, self.neuron), *settings, self.extra)

    def states(self):
        return len(reference.NEURONS[self.spec().kind].states)

    def per_channel(self):
        return reference.NEURONS[self.spec().kind].per_channel

    def settings(self, shape, T):
        C, height, width = shape[2:]
        return {
            "numbers": list(map(float, self.spec().numbers)),
            "spiking": self.spiking,
            "connect": (CONNECT | SUM)[self.connect],
            "eps": self.eps,
            "still": self.still,
            "channels": C,
            "inner": 1 if self.channels_last else height * width,
            "T": T,
        }


def affine(z, norm, block):
    """Returns y in the dtype of ``norm``."""
    if not block.normalised:
        return z
    column = lambda t: t.reshape(-1, 1, 1)  # noqa: E731
    var = norm.var + torch.tensor(block.eps, dtype=norm.var.dtype)
    # torch's square root (MKL's) may be off by one rounding.
    scale = 1 / (var.sqrt() if var.requires_grad else torch.from_numpy(np.sqrt(var.numpy())))
    scale = scale if norm.weight is None else norm.weight * scale
    y = (z - column(norm.mean)) * column(scale)
    return y if norm.bias is None else y + column(norm.bias)


def formula(z, shortcut, norm, leak, block, T):
    """Returns (out, v, A) in the state's type; z, shortcut and norm have this type."""
    y = affine(z, norm, block).expand(T, *z.shape[1:])
    x = y + shortcut if block.connect == "add_before" else y
    a, v = x, None
    if block.spiking:
        a, v = reference.multistep(x, block.spec(), learnt=leak)
        v = v[-1] if block.states() == 1 else v[:, -1]
    connect = {"add": lambda: a + shortcut, "and": lambda: a * shortcut, "iand": lambda: shortcut * (1 - a)}
    return connect.get(block.connect, lambda: a)(), v, a


def flat(t, block):
    """Returns [T, M] in memory order."""
    if t is None:
        return None
    t = t.permute(0, 1, 3, 4, 2) if block.channels_last else t
    return t.reshape(len(t), -1)


def shaped(rows, shape, block):
    """The inverse of :func:`flat`, for any number of rows."""
    _, images, C, height, width = shape
    if block.channels_last:
        return rows.reshape(-1, images, height, width, C).permute(0, 1, 4, 2, 3)
    return rows.reshape(-1, images, C, height, width)


class Kernels:
    """Calls the kernels one after the other as csrc/ops does, with guarded outputs. ``reports`` has one per kernel."""

    def __init__(self, block, layout=None, schedule=0):
        self.block, self.layout, self.schedule = block, layout or host.Layout(), schedule
        self.reports, self.outputs = {}, {}

    def call(self, name, inputs=(), outputs=(), **numbers):
        arguments = dict(numbers)
        arguments |= {key: host.as_array(t) for key, t in dict(inputs).items()}
        guarded = {key: g for key, g in dict(outputs).items() if g is not None}
        arguments |= {key: host.as_array(g.tensor) for key, g in guarded.items()}
        self.reports[name] = getattr(host.module(), f"bn_{name}")(arguments, self.schedule)
        for key, g in guarded.items():
            g.check(key)
        return {key: g.tensor.clone() for key, g in guarded.items()}

    def rows(self, t):
        return None if t is None else self.layout.input(flat(t, self.block))

    def norm(self, norm):
        if not self.block.normalised:
            return {}
        return {"mean": norm.mean, "var": norm.var, "weight": norm.weight, "bias": norm.bias}

    def statistics(self, z):
        C = z.shape[2]
        out = {"statistics": host.Guarded(2, C, state_dtype(z.dtype))}
        numbers = {key: self.block.settings(z.shape, len(z))[key] for key in ("channels", "inner")}
        return self.call("statistics", {"z": self.rows(z)}, out, **numbers)["statistics"]

    def shared(self, z, shortcut, norm, leak, T):
        rows = self.rows(z)
        inputs = {"z": rows.expand(T, -1) if self.block.still else rows, "shortcut": self.rows(shortcut)}
        inputs |= self.norm(norm) | {"leak": leak}
        return inputs, self.block.settings(z.shape, T)

    def forward(self, z, shortcut, norm, leak=None, T=None, keep=True, want_v=True, bits=False):
        """Returns out [T, ...], v [...] or None, checkpoints, bits."""
        T, M, state = T or len(z), z[0].numel(), state_dtype(z.dtype)
        inputs, numbers = self.shared(z, shortcut, norm, leak, T)
        states = self.block.states()
        count = states * checkpoint_count(T) if keep and self.block.spiking else 0
        out = {
            "out": self.layout.output(T, M, z.dtype),
            "sum": self.layout.output(T, M, z.dtype) if self.block.connect == "sum" else None,
            "v": self.layout.output(states, M, state) if want_v and self.block.spiking else None,
            "checkpoints": self.layout.output(count, M, state) if count else None,
            "bits": host.Guarded(T, M // 8, torch.uint8) if bits else None,
        }
        got = self.call("forward", inputs, out, **numbers)
        unflat = lambda t: None if t is None else shaped(t, z.shape, self.block)  # noqa: E731
        v = unflat(got.get("v"))
        return SimpleNamespace(
            out=unflat(got["out"]),
            sum=unflat(got.get("sum")),
            v=v if v is None or states > 1 else v[0],
            checkpoints=got.get("checkpoints"),
            bits=got.get("bits"),
        )

    def gradient(self, grad):
        """Converts a gradient as csrc/ops does: one number for all neurons becomes rows of kBroadcast."""
        if not host.is_scalar(grad):
            return self.rows(grad)
        rows = grad.as_strided((len(grad), host.module().broadcast), (grad.stride(0), 0))
        return host.Layout().input(rows)

    def grad_leak(self, leak, channels):
        """The buffer of the leak's gradient. A kind whose parameters may be per channel always has a sum of each."""
        if leak is None:
            return None
        return host.Guarded(*((len(leak), channels) if self.block.per_channel() else (1, 1)), leak.dtype)

    def sum_rows(self, sums):
        """The gradient of parameters that all channels share."""
        out = host.Guarded(1, len(sums), sums.dtype)
        self.reports["sum_rows"] = host.module().sum_rows(sums.numpy(), out.tensor.numpy(), self.schedule)
        out.check("the sum of each row")
        return out.tensor.reshape(-1, 1)

    def backward_of_sum(self, z, norm, grad_out, forward, leak=None, grad_sum=None, frozen=False):
        """The gradients of a call with the connection ``"sum"``, as csrc/ops computes them: reduce reads the sum and
        writes its gradient, then apply runs without neuron and connection."""
        block, T, M, C, state = self.block, len(grad_out), z[0].numel(), z.shape[2], state_dtype(z.dtype)
        inputs, numbers = self.shared(z, forward.sum, norm, leak, T)
        inputs |= {"checkpoints": forward.checkpoints, "grad_out": self.gradient(grad_out)}
        inputs |= {"grad_skip": None if grad_sum is None else self.gradient(grad_sum)}
        out = {
            "sums": host.Guarded(2, C, state),
            "grad_sum": self.layout.output(T, M, z.dtype),
            "grad_leak": self.grad_leak(leak, C),
        }
        reduced = self.call("reduce", inputs, out, **numbers)
        total = out["grad_sum"].tensor
        inputs, numbers = self.shared(z, None, norm, None, T)
        numbers |= {"spiking": False, "connect": 0, "count": float((1 if block.still else T) * M // C)}
        inputs |= {"grad_out": total, "sums": None if frozen else reduced["sums"]}
        got = self.call("apply", inputs, {"grad_z": self.layout.output(len(z), M, z.dtype)}, **numbers)
        unflat = lambda t: shaped(t, z.shape, block)  # noqa: E731
        return SimpleNamespace(
            z=unflat(got["grad_z"]),
            shortcut=unflat(reduced["grad_sum"]),
            bias=reduced["sums"][0],
            weight=reduced["sums"][1],
            leak=reduced.get("grad_leak"),
        )

    def backward(self, z, shortcut, norm, grad_out, forward, leak=None, skip=None, frozen=False, T=None):
        """Returns the gradients of z, shortcut, weight, bias and leak; None for a missing one."""
        block, T, M, state = self.block, T or len(z), z[0].numel(), state_dtype(z.dtype)
        read = None if block.connect == "add" else shortcut
        inputs, numbers = self.shared(z, read, norm, leak, T)
        inputs |= {"checkpoints": forward.checkpoints}
        go = self.gradient(grad_out)
        out = {
            "sums": host.Guarded(2, z.shape[2], state),
            "grad_sum": None if skip is None else self.layout.output(T, M, z.dtype),
            "grad_leak": self.grad_leak(leak, z.shape[2]),
        }
        skip = None if skip is None else self.gradient(skip)
        reduced = self.call("reduce", inputs | {"grad_out": go, "grad_skip": skip}, out, **numbers)
        if leak is not None and block.per_channel() and leak.shape[1] == 1:
            reduced["grad_leak"] = self.sum_rows(reduced["grad_leak"])
        if out["grad_sum"] is not None:
            go = out["grad_sum"].tensor
        out = {
            "grad_z": self.layout.output(1 if block.still else T, M, z.dtype),
            "grad_shortcut": None if read is None else self.layout.output(T, M, z.dtype),
        }
        numbers["count"] = float((1 if block.still else T) * M // z.shape[2])
        sums = None if frozen or not block.normalised else reduced["sums"]
        got = self.call("apply", inputs | {"grad_out": go, "sums": sums}, out, **numbers)
        unflat = lambda t: None if t is None else shaped(t, z.shape, block)  # noqa: E731
        grad_sum = unflat(reduced.get("grad_sum"))
        return SimpleNamespace(
            z=unflat(got["grad_z"]),
            shortcut=grad_sum if block.connect == "add" else unflat(got.get("grad_shortcut")),
            bias=reduced["sums"][0],
            weight=reduced["sums"][1],
            leak=reduced.get("grad_leak"),
            sum=grad_sum,
        )
