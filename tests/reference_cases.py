"""What the tests share: a neuron with all its options, run natively or by the reference, and bounds on its rounding.

The reference always runs on the CPU: on CUDA torch divides by a number by multiplying with its reciprocal.
"""

import math
from dataclasses import dataclass

import torch
from sewsnn import functional, surrogate
from sewsnn.ops import reference
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SURROGATES = tuple(
    getattr(surrogate, name)() for name in surrogate.__all__ if name != "Surrogate"
)  # all nine, default parameter


def cpu(tensor):
    return None if tensor is None else tensor.detach().cpu()


@dataclass(frozen=True)
class Case:
    """A neuron and its options. PLIF gets the w of its tau."""

    kind: str = "lif"
    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    surrogate_function: surrogate.Surrogate = surrogate.ATan(2.0)
    detach_reset: bool = True

    @property
    def v_rest(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def shared(self) -> dict:
        return {
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "surrogate_function": self.surrogate_function,
            "detach_reset": self.detach_reset,
        }

    def w(self, x):
        """The parameter of PLIF beside x; None for the others."""
        if self.kind != "plif":
            return None
        return torch.tensor(-math.log(self.tau - 1), dtype=reference.state_dtype(x.dtype), device=x.device)

    def run(self, x, v=None, w=None, *, store_v_seq=True, backend="native"):
        """The public function of this neuron."""
        shared = dict(self.shared, store_v_seq=store_v_seq, backend=backend)
        if self.kind == "if":
            return functional.if_multistep(x, v, **shared)
        if self.kind == "lif":
            return functional.lif_multistep(x, v, tau=self.tau, decay_input=self.decay_input, **shared)
        w = self.w(x) if w is None else w
        return functional.plif_multistep(x, w, v, decay_input=self.decay_input, **shared)

    def reference(self, x, v=None, leak=None, fire=None):
        """(s_seq, v_seq) of the specification; ``leak`` is that of PLIF."""
        return reference.multistep(
            x,
            v,
            fire=fire or self.surrogate_function,
            tau=self.tau if self.kind == "lif" else None,
            leak=leak,
            decay_input=self.decay_input,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
        )

    def leak(self, x):
        """The leak of PLIF as the device of x computes it, on the CPU; None for the others."""
        return None if self.kind != "plif" else self.w(x).sigmoid().cpu()


def inputs(T, *shape, dtype=torch.float32, device="cpu", seed=0, scale=1.0, mean=0.5):
    """Currents around which neurons fire now and then."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, *shape, generator=generator, dtype=torch.float64) * scale + mean
    return x.to(device, dtype)


def gradients(case, x, v, grad_s, grad_v, *, native=True, store_v_seq=True):
    """Gradients by (x, v, w) for given dL/ds and dL/dv, None for what there is none of, on the CPU."""
    device = x.device if native else "cpu"
    x, v, w = (None if t is None else t.detach().to(device).requires_grad_() for t in (x, v, case.w(x)))
    s, v_out = case.run(x, v, w, store_v_seq=store_v_seq, backend="native" if native else "torch")
    pairs = [(out, grad.to(device)) for out, grad in ((s, grad_s), (v_out, grad_v)) if grad is not None]
    by = [t for t in (x, v, w) if t is not None]
    found = iter(torch.autograd.grad(*zip(*pairs, strict=True)[:0] or [p[0] for p in pairs], by, [p[1] for p in pairs]))
    return [None if t is None else cpu(next(found)) for t in (x, v, w)]
