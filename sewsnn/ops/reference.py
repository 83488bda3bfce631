"""The specification in code: multi-step IF, LIF and PLIF neurons in plain torch, differentiable by autograd, any dtype.

The compiled kernels are tested against this. It is written to be read, one time-step after the other:

    charge  IF    h = v + x
            LIF   h = v + (x - (v - v_rest)) / tau            decay_input
                  h = v - (v - v_rest) / tau + x              otherwise
            PLIF  the same with leak = 1 / tau = sigmoid(w)
    fire    s = Heaviside(h - v_threshold)
    reset   v = (1 - s) h + s v_reset                         hard
            v = h - s v_threshold                             soft (v_reset is None)

v_rest is v_reset, or 0 for soft reset, and the v a neuron starts from. (Main paper, section 3.1; supplement, A.1.)
"""

from collections.abc import Callable

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What v is computed and returned in: float64 for float64, float32 for every other storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def charge(x: Tensor, v: Tensor, *, tau: float | None, leak: Tensor | None, decay_input: bool, v_rest: float) -> Tensor:
    """h from the potential v and the input x. ``tau`` for LIF, ``leak`` for PLIF, neither for IF."""
    if tau is None and leak is None:
        return v + x
    above_rest = v - v_rest
    if decay_input:
        drive = x - above_rest
        return v + (drive / tau if leak is None else drive * leak)
    return v - (above_rest / tau if leak is None else above_rest * leak) + x


def reset(h: Tensor, s: Tensor, v_threshold: float, v_reset: float | None) -> Tensor:
    """v after the spikes s."""
    if v_reset is None:
        return h - s * v_threshold
    # The clamp changes nothing but an h that overflowed to infinity, for which 0 * inf would be NaN.
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
        x_seq: ``[T, ...]`` input current.
        v: ``[...]`` initial potential; None: at rest.
        fire: the spike as a function of h - v_threshold, a :class:`sewsnn.surrogate.Surrogate` for instance. Its
            ``primitive`` in this place makes the whole neuron smooth, which is how the gradients are checked.
        tau, leak: the membrane time constant of LIF, or 1 / tau of PLIF as a 0-dimensional tensor.

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
