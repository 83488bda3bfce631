"""The specification in code: multi-step IF, LIF and PLIF neurons in plain torch, differentiable by autograd, any dtype.

The tests compare the compiled kernels with this file. It computes one time-step after the other:

    charge  IF    h = v + x
            LIF   h = v + (x - (v - v_rest)) / tau            decay_input
                  h = v - (v - v_rest) / tau + x              otherwise
            PLIF  the same with leak = 1 / tau = sigmoid(w)
    fire    s = Heaviside(h - v_threshold)
    reset   v = (1 - s) h + s v_reset                         hard
            v = h - s v_threshold                             soft (v_reset is None)

v_rest is v_reset, or 0 with soft reset; a neuron starts at v_rest unless a potential is given. (Main paper, section
3.1; supplement, A.1.)
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which v is computed and returned: float64 for float64 input, float32 for every other input dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def charge(x: Tensor, v: Tensor, *, tau: float | None, leak: Tensor | None, decay_input: bool, v_rest: float) -> Tensor:
    """h from the potential v and the input x. Pass ``tau`` for LIF, ``leak`` for PLIF, neither for IF."""
    if tau is None and leak is None:
        return v + x
    above_rest = v - v_rest
    if decay_input:
        drive = x - above_rest
        return v + (drive / tau if leak is None else drive * leak)
    return v - (above_rest / tau if leak is None else above_rest * leak) + x


def reset(h: Tensor, s: Tensor, v_threshold: float, v_reset: float | None) -> Tensor:
    """The potential v after the spikes s."""
    if v_reset is None:
        return h - s * v_threshold
    # The clamp changes only an h that overflowed to infinity: there 0 * inf would be NaN.
    return (1 - s) * h.clamp(max=torch.finfo(h.dtype).max) + s * v_reset


def multistep(
    x_seq: Tensor,
    v: Tensor | None = None,
    *,
    fire: Callable[[Tensor], Tensor],
    tau: float | None = None,
    leak: Tensor | None = None,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = True,
) -> tuple[Tensor, Tensor]:
    """Runs the neuron over all T time-steps.

    Args:
        x_seq: input current ``[T, ...]``.
        v: initial membrane potential ``[...]``. Default None: at rest.
        fire: the spike as a function of h - v_threshold, for example a :class:`sewsnn.surrogate.Surrogate`. With
            ``surrogate.primitive`` instead, the whole neuron is smooth; the tests check the gradients that way.
        tau: membrane time constant of LIF in time-steps. Default None: not LIF.
        leak: 1 / tau of PLIF as a 0-dimensional tensor. Default None: not PLIF.
        decay_input: LIF and PLIF scale the input by 1 / tau as well. Default True.
        v_threshold: firing threshold. Default 1.0.
        v_reset: membrane potential after a spike. Default 0.0. None: soft reset.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.

    Returns:
        ``s_seq [T, ...]`` in the dtype of x_seq and ``v_seq [T, ...]`` in :func:`state_dtype`.
    """
    state = state_dtype(x_seq.dtype)
    v_rest = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x_seq[0], v_rest, dtype=state) if v is None else v.to(state)
    s_seq, v_seq = [], []
    for x in x_seq:
        h = charge(x.to(state), v, tau=tau, leak=leak, decay_input=decay_input, v_rest=v_rest)
        s = fire(h - v_threshold)
        v = reset(h, s.detach() if detach_reset else s, v_threshold, v_reset)
        s_seq.append(s.to(x_seq.dtype))
        v_seq.append(v)
    return torch.stack(s_seq), torch.stack(v_seq)


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
    neuron: dict | None = None,
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
        neuron: keyword arguments of :func:`multistep`. Default None: no neuron, A = y.

    Returns:
        ``out [T, N, C, ...]`` in the dtype of z_seq, and ``v_seq`` of the neuron or None. All steps before ``out`` are
        computed in :func:`state_dtype`.
    """
    state = state_dtype(z_seq.dtype)
    y = z_seq.to(state) if statistics is None else normalise(z_seq, *statistics, weight, bias, eps)
    if connect_before:
        y = y + shortcut.to(state)
    a, v_seq = (y, None) if neuron is None else multistep(y, **neuron)
    if connect_f is not None and not connect_before:
        a = CONNECT[connect_f](a, shortcut.to(state))
    return a.to(z_seq.dtype), v_seq
