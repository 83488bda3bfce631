"""Calls the stem's kernels for CPU and CUDA on guarded buffers, and computes the expected results in plain torch."""

import host
import torch
from host import Guarded, as_array, module
from torch.nn.functional import max_pool2d

from sewsnn.ops import reference
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

#: reports of the last calls of CUDA kernels
reports: list[dict] = []


class Stem:
    """z [images, C, H, W] in its own order, contiguous or channels_last, and what is done to it over T time-steps.

    ``norm``: mean, var, weight, bias [C] in the state's type, each or all of them None. ``w``: PLIF's parameter.
    """

    def __init__(self, name, z, T, norm, w=None, offset=0, tau=2.0, v_threshold=1.0, v_reset=0.0, **options):
        self.name, self.z, self.T, self.norm, self.w, self.offset = name, z.detach(), T, norm, w, offset
        self.tau, self.v_threshold, self.v_reset = tau, v_threshold, v_reset
        self.sigma = options.pop("surrogate_function", ATan(2.0))
        self.decay_input, self.detach_reset = options.pop("decay_input", True), options.pop("detach_reset", True)
        self.eps = options.pop("eps", 1e-5)
        assert not options
        self.state = state_dtype(z.dtype)
        self.last = z.shape[1] > 1 and z.stride(1) == 1
        n, c, h, w_ = z.shape
        self.out_shape = (T, n, c, (h + 1) // 2, (w_ + 1) // 2)
        self.leak = None if w is None else w.detach().to(self.state).reshape(()).sigmoid()

    def spec(self):
        settings = (self.sigma, self.tau, self.decay_input, self.v_threshold, self.v_reset, self.detach_reset)
        return NeuronSpec(host.KINDS[self.name], *settings)

    # ---- the reference

    def normed(self):
        """Returns invstd, scale, bias and z - mean, rounded as in the kernels."""
        mean, var, weight, bias = (None if n is None else n.reshape(-1, 1, 1) for n in self.norm)
        z = self.z.to(self.state)
        if mean is None:
            one = torch.ones(z.shape[1], 1, 1, dtype=self.state)
            return one, one, 0 * one, z
        invstd = 1 / torch.sqrt(var + self.eps)
        return invstd, invstd if weight is None else weight * invstd, 0 * mean if bias is None else bias, z - mean

    def neuron(self, x, leak):
        s, _ = reference.multistep(x, self.spec(), learnt=leak)
        return max_pool2d(s.flatten(0, 1), 3, 2, 1).view(self.out_shape)

    def expected(self, grad_out=None):
        """Returns out; with a gradient also dL/dy summed over T, xhat, scale and dL/dleak, in the state's type."""
        invstd, scale, bias, u = self.normed()
        y = (u * scale + bias).requires_grad_(grad_out is not None)
        leak = None if self.leak is None else self.leak.detach().requires_grad_(grad_out is not None)
        out = self.neuron(y.expand(self.T, *y.shape), leak)
        if grad_out is None:
            return out
        inputs = [y] if leak is None else [y, leak]
        grads = torch.autograd.grad(out, inputs, grad_out.to(self.state))
        return out.detach(), grads[0], u * invstd, scale, grads[1] if leak is not None else None

    # ---- the kernels

    def flat(self, t):
        """Returns a guarded copy of [..., C, H, W] in the order of z, and the same as a tensor of that shape."""
        order = t.movedim(-3, -1) if self.last else t
        guarded = Guarded(1, t.numel(), t.dtype, offset=self.offset)
        guarded.tensor.copy_(order.reshape(1, -1))
        return guarded.tensor

    def result(self, shape, dtype):
        return Guarded(1, torch.Size(shape).numel(), dtype, offset=self.offset)

    def shaped(self, t, shape):
        return t.view(*shape[:-3], *shape[-2:], shape[-3]).movedim(-1, -3) if self.last else t.view(shape)

    def given(self):
        n, c, h, w = self.z.shape
        mean, var, weight, bias = map(as_array, self.norm)
        options = {"numbers": list(map(float, self.spec().numbers)), "leak": as_array(self.leak), "eps": self.eps}
        options |= {"mean": mean, "var": var, "weight": weight, "bias": bias, "channels_last": self.last}
        return options | {"T": self.T, "images": n, "channels": c, "height": h, "width": w}

    def call(self, function, kernels, schedule, *arguments, **outs):
        """Passes the memory of tensors, and numbers unchanged. ``outs`` are the guarded outputs by name."""
        z = self.flat(self.z)
        given = self.given() | {"z": as_array(z)}
        report = function(kernels, schedule, given, *(a if isinstance(a, float) else as_array(a) for a in arguments))
        if kernels == "cuda":
            reports.append(report)
        for name, out in outs.items():
            if out is not None:
                out.check(name)

    def forward(self, kernels, schedule=0):
        out = self.result(self.out_shape, self.z.dtype)
        self.call(module().pool_forward, kernels, schedule, out.tensor, out=out)
        return self.shaped(out.tensor, self.out_shape)

    def reduce(self, kernels, grad_out, schedule=0):
        """Returns the sums [2, C], and dL/dleak if the leak is learnt."""
        sums = Guarded(2, self.z.shape[1], self.state)
        leak = None if self.leak is None else Guarded(1, 1, self.state)
        arguments = self.flat(grad_out), sums.tensor, None if leak is None else leak.tensor
        self.call(module().pool_reduce, kernels, schedule, *arguments, sums=sums, leak=leak)
        return sums.tensor, None if leak is None else leak.tensor.reshape(())

    def apply(self, kernels, grad_out, sums, count, schedule=0):
        grad_z = self.result(self.z.shape, self.z.dtype)
        arguments = self.flat(grad_out), sums, float(count), grad_z.tensor
        self.call(module().pool_apply, kernels, schedule, *arguments, grad_z=grad_z)
        return self.shaped(grad_z.tensor, self.z.shape)
