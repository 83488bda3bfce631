"""The specification in code: multi-step neurons in plain torch, differentiable by autograd, any dtype.

Each class below is one neuron. In every time-step it charges its states with the input, fires, and resets them. The
first state is the membrane potential v; h is v after the charge, before the reset. The tests compare the compiled
kernels (csrc/neurons) with this file.

A neuron starts at rest unless a state is given: v = v_reset, or 0 with soft reset (v_reset is None).
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a state is computed and returned: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class IF:
    """Integrate-and-fire, and what most neurons share: one threshold, a hard or a soft reset.

        h = v + x
        s = Heaviside(h - v_threshold)
        v = (1 - s) h + s v_reset       hard reset
        v = h - s v_threshold           soft reset (v_reset is None)

    Args:
        spec: a :class:`sewsnn.ops.spec.NeuronSpec`. Its surrogate is the spike as a function of h - v_threshold. With
            ``surrogate.primitive`` in its place, the whole neuron is smooth.
        learnt: the learnt parameters as the ops take them, a row each; None: there are none.
        dims: number of dimensions of one time-step of the input.

    Source: main paper, section 3.1; supplement, A.1.
    """

    states: ClassVar[tuple[str, ...]] = ("v",)  #: names of the states; the first is the membrane potential
    learnt: ClassVar[tuple[str, ...]] = ()  #: names of the learnt parameters
    extra: ClassVar[tuple[str, ...]] = ()  #: names of further numbers
    per_channel: ClassVar[bool] = False  #: a learnt parameter may have one number for each channel
    binary: ClassVar[bool] = True  #: spikes are 0 or 1
    surrogate: ClassVar[bool] = True  #: backward uses a surrogate of :mod:`sewsnn.surrogate`
    uses_tau: ClassVar[bool] = False  #: tau must be at least 1

    def __init__(self, spec, learnt: Tensor | None, dims: int):
        self.spec = spec
        self.threshold = spec.v_threshold
        self.v_start = 0.0 if spec.v_reset is None else spec.v_reset
        for name, number in zip(self.extra, spec.extra, strict=True):
            setattr(self, name, number)

    def at_rest(self) -> tuple[float, ...]:
        """The states of a neuron at rest."""
        return (self.v_start,)

    def charge(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The states after the input x."""
        return (v + x,)

    def fire(self, h: Tensor) -> Tensor:
        """The spikes."""
        return self.spec.surrogate(h - self.threshold)

    def reset(self, s: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The states after the spikes s."""
        return (self.reset_v(s, h),)

    def reset_v(self, s: Tensor, h: Tensor) -> Tensor:
        """The membrane potential after the spikes s."""
        s = s.detach() if self.spec.detach_reset else s
        if self.spec.v_reset is None:
            return h - s * self.threshold
        # The clamp changes only an h that overflowed to infinity: there 0 * inf would be NaN.
        return (1 - s) * h.clamp(max=torch.finfo(h.dtype).max) + s * self.spec.v_reset

    def output(self, s: Tensor) -> Tensor:
        """What the neuron sends to the next layer."""
        return s


class LIF(IF):
    """Leaky integrate-and-fire.

        h = v + (x - (v - v_start)) / tau       decay_input
        h = v - (v - v_start) / tau + x         otherwise; v_start is v_reset, or 0 with soft reset

    Source: supplement, A.1.
    """

    uses_tau = True

    def leaked(self, x: Tensor) -> Tensor:
        return x / self.spec.tau

    def charge(self, x, v):
        above_start = v - self.v_start
        if self.spec.decay_input:
            return (v + self.leaked(x - above_start),)
        return (v - self.leaked(above_start) + x,)


class PLIF(LIF):
    """LIF that multiplies by a learnt leak, 1 / tau = sigmoid(w).

    Source: supplement, A.1; Fang et al., ICCV 2021.
    """

    learnt = ("leak",)
    uses_tau = False

    def __init__(self, spec, learnt, dims):
        super().__init__(spec, learnt, dims)
        self.leak = learnt.reshape(())

    def leaked(self, x):
        return x * self.leak


class LearntLIF(LIF):
    """LIF with a learnt leak or a learnt threshold, one for the layer or one for each channel. A leak that is a
    constant divides by tau, as LIF does."""

    learnt = ("leak", "threshold")
    extra = ("learns_leak",)
    per_channel = True

    def __init__(self, spec, learnt, dims):
        super().__init__(spec, learnt, dims)
        channels = learnt.shape[1]
        shape = () if channels == 1 else (channels, *[1] * (dims - 2))  # a time-step is [N, C, ...]
        self.leak, self.threshold = (row.reshape(shape) for row in learnt)

    def leaked(self, x):
        return x * self.leak if self.learns_leak else x / self.spec.tau


class CUBALIF(IF):
    """Current-based LIF: the input charges a current, and the current charges the potential.

        c = c c_decay + x
        h = v v_decay + c

    Source: CUBALIFNode of SpikingJelly.
    """

    states = ("v", "c")
    extra = ("c_decay", "v_decay")

    def at_rest(self):
        return self.v_start, 0.0

    def charge(self, x, v, c):
        c = c * self.c_decay + x
        return v * self.v_decay + c, c

    def fire(self, h, c):
        return super().fire(h)

    def reset(self, s, h, c):
        return self.reset_v(s, h), c


class AdaptiveLIF(IF):
    """Adaptive LIF: a current w, which grows with the potential and with every spike, works against the input.

        h = v + (x - (v - v_rest) - w) / tau
        w = w + (a (h - v_rest) - w) / tau_w + b s

    Source: AdaptBaseNode of SpikingJelly.
    """

    states = ("v", "w")
    extra = ("v_rest", "w_rest", "tau_w", "a", "b")
    uses_tau = True

    def at_rest(self):
        return self.v_start, self.w_rest

    def charge(self, x, v, w):
        h = v + ((x - (v - self.v_rest)) - w) / self.spec.tau
        return h, w + (self.a * (h - self.v_rest) - w) / self.tau_w

    def fire(self, h, w):
        return super().fire(h)

    def reset(self, s, h, w):
        return self.reset_v(s, h), w + self.b * s


class ILIF(IF):
    """Integer LIF: up to D spikes in a time-step, and a soft reset by their number.

        h = (1 - 1 / tau) v + x
        n = round(clamp(h / v_threshold, 0, D))
        v = h - n v_threshold

    The surrogate computes n from h / v_threshold. The output is n / unit.

    Source: Luo et al., ECCV 2024.
    """

    extra = ("D", "lower", "upper", "unit")
    binary = False
    surrogate = False
    uses_tau = True

    def charge(self, x, v):
        return ((1 - 1 / self.spec.tau) * v + x,)

    def fire(self, h):
        return self.spec.surrogate(h / self.threshold)

    def output(self, s):
        return s / self.unit


class QIF(IF):
    """Quadratic integrate-and-fire.

        h = v + (x + a0 (v - v_rest) (v - v_c)) / tau

    Source: QIFNode of SpikingJelly.
    """

    extra = ("v_c", "a0", "v_rest")
    uses_tau = True

    def charge(self, x, v):
        return (v + (x + self.a0 * (v - self.v_rest) * (v - self.v_c)) / self.spec.tau,)


#: all neurons by the name of their kind
NEURONS: dict[str, type[IF]] = {
    kind.__name__: kind for kind in (IF, LIF, PLIF, LearntLIF, CUBALIF, AdaptiveLIF, ILIF, QIF)
}


def multistep(x_seq: Tensor, spec, state: Tensor | None = None, learnt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Runs a neuron over all T time-steps.

    Args:
        x_seq: input current ``[T, ...]``.
        spec: the neuron, a :class:`sewsnn.ops.spec.NeuronSpec`.
        state: initial state ``[...]``, of a neuron with k > 1 states ``[k, ...]``. Default None: at rest.
        learnt: learnt parameters in :func:`state_dtype`: PLIF's leak, one number; ``[rows, 1]`` or ``[rows, C]`` for
            LearntLIF. Default None.

    Returns:
        ``s_seq [T, ...]`` in the dtype of x_seq, and the states after every time-step, ``[T, ...]`` or ``[k, T, ...]``,
        in :func:`state_dtype`.
    """
    neuron = NEURONS[spec.kind](spec, learnt, x_seq.dim() - 1)
    dtype, many = state_dtype(x_seq.dtype), len(neuron.states) > 1
    if state is None:
        states = tuple(torch.full_like(x_seq[0], number, dtype=dtype) for number in neuron.at_rest())
    else:
        states = tuple(state.to(dtype).unbind()) if many else (state.to(dtype),)
    s_seq, state_seq = [], []
    for x in x_seq:
        states = neuron.charge(x.to(dtype), *states)
        s = neuron.fire(*states)
        states = neuron.reset(s, *states)
        s_seq.append(neuron.output(s).to(x_seq.dtype))
        state_seq.append(torch.stack(states) if many else states[0])
    return torch.stack(s_seq), torch.stack(state_seq, 1 if many else 0)


#: the connection g(A, S) of a block's output A with its shortcut S (main paper, Table 1)
CONNECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": lambda a, s: a + s,
    "AND": lambda a, s: a * s,
    "IAND": lambda a, s: s * (1 - a),
}


def moments(z_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over T, N and space, as batch norm uses them in training."""
    z = z_seq.to(state_dtype(z_seq.dtype)).movedim(2, 0).flatten(1)
    return z.mean(1), z.var(1, unbiased=False)


def _root(x: Tensor) -> Tensor:
    """The square root, correctly rounded as in IEEE 754; torch's own root may differ by one unit in the last place."""
    root = x.sqrt()
    values = [math.sqrt(value) if value >= 0 else math.nan for value in x.detach().double().flatten().tolist()]
    return root + (x.new_tensor(values).view_as(x) - root).nan_to_num(0).detach()


def normalise(
    z_seq: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``(z - mean) weight / sqrt(var + eps) + bias`` of ``[T, N, C, ...]``, in :func:`state_dtype`."""
    scale = 1 / _root(var + eps)
    scale = scale if weight is None else weight.to(scale.dtype) * scale
    channel = [-1, *[1] * (z_seq.dim() - 3)]
    y = (z_seq.to(scale.dtype) - mean.view(channel)) * scale.view(channel)
    return y if bias is None else y + bias.to(scale.dtype).view(channel)


def bn_neuron(
    z_seq: Tensor,
    shortcut: Tensor | None = None,
    *,
    statistics: tuple[Tensor, Tensor] | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    connect_f: str | None = None,
    connect_before: bool = False,
    neuron=None,
    learnt: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Batch norm, the neuron over T, and the connection with the shortcut.

        y = (z - mean) weight / sqrt(var + eps) + bias      statistics = (mean, var); y = z if statistics is None
        A = SN(y), out = g(A, S)                            or out = SN(y + S) with ``connect_before``

    Args:
        z_seq: ``[T, N, C, ...]``.
        shortcut: S, in the shape of z_seq. Default None.
        statistics: ``(mean, var)``, each ``[C]``; None: no batch norm.
        weight: scale ``[C]``. Default None: 1.
        bias: offset ``[C]``. Default None: 0.
        eps: added to the variance. Default 1e-5.
        connect_f: None (default), ``"ADD"``, ``"AND"`` or ``"IAND"``.
        connect_before: add the shortcut before the neuron. Default False.
        neuron: a :class:`sewsnn.ops.spec.NeuronSpec`. Default None: no neuron, A = y.
        learnt: its learnt parameters, as in :func:`multistep`. Default None.

    Returns:
        ``out [T, N, C, ...]`` in the dtype of z_seq, and the neuron's states as from :func:`multistep`, or None. All
        steps before ``out`` are computed in :func:`state_dtype`.
    """
    state = state_dtype(z_seq.dtype)
    y = z_seq.to(state) if statistics is None else normalise(z_seq, *statistics, weight, bias, eps)
    if connect_before:
        y = y + shortcut.to(state)
    a, states = (y, None) if neuron is None else multistep(y, neuron, learnt=learnt)
    if connect_f is not None and not connect_before:
        a = CONNECT[connect_f](a, shortcut.to(state))
    return a.to(z_seq.dtype), states
