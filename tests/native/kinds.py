"""The neurons beside IF, LIF and PLIF: settings for tests, and the comparison of their kernels with the reference."""

import host
import torch
from bn_host import Block
from cases import EPS, assert_close, current

from sewsnn.ops import neuron as native
from sewsnn.ops import reference
from sewsnn.ops.reference import NEURONS, state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan, MultiLevelSpikeCount

#: name of a case -> kind, settings of the specification. No number is a power of two where others are possible.
CASES = {
    "learnt": ("LearntLIF", {"extra": (1.0,)}),
    "learnt_threshold": ("LearntLIF", {"extra": (0.0,), "tau": 3.0}),
    "cuba": ("CUBALIF", {"extra": (0.3, 0.7)}),
    "adaptive": ("AdaptiveLIF", {"extra": (-0.1, 0.2, 3.0, 0.3, 0.4), "tau": 1.7}),
    "integer": ("ILIF", {"extra": (4.0, 0.0, 4.0, 4.0), "tau": 3.0, "v_threshold": 0.7}),
    "integer_counts": ("ILIF", {"extra": (3.0, -0.5, 3.5, 1.0), "v_threshold": 0.7}),
    "quadratic": ("QIF", {"extra": (0.8, 0.03, -0.1), "tau": 1.7}),
}
ATAN = ATan(2.0)
SETTINGS = ("surrogate", "tau", "decay_input", "v_threshold", "v_reset", "detach_reset")


def spec(case: str, **settings) -> NeuronSpec:
    """Returns the specification of a case with other settings than its own."""
    kind, own = CASES[case]
    settings = own | settings
    if kind == "ILIF":
        most, lower, upper, _ = settings["extra"]
        settings |= {"surrogate": MultiLevelSpikeCount(int(most), (lower, upper)), "v_reset": None}
    return NeuronSpec(kind, settings.pop("surrogate", ATAN), **settings)


def learnt(case: str, dtype: torch.dtype, channels: int = 1, seed: int = 11) -> torch.Tensor | None:
    """Returns the learnt parameters of a case, ``[2, channels]``: leak and threshold."""
    if CASES[case][0] != "LearntLIF":
        return None
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand((2, channels), generator=generator, dtype=torch.float64)
    return (random * 0.5 + torch.tensor([[0.3], [0.7]])).to(state_dtype(dtype))


def block(case: str, channels: int = 1, **settings) -> Block:
    """Returns the case behind batch norm, with learnt parameters for this number of channels."""
    neuron = spec(case, **{name: settings.pop(name) for name in SETTINGS if name in settings})
    numbers = {name: getattr(neuron, name) for name in SETTINGS}
    leak = learnt(case, torch.float64, channels)
    return Block(neuron=neuron.kind, leak=leak, extra=neuron.extra, **numbers, **settings)


def states(case: str) -> int:
    return len(NEURONS[CASES[case][0]].states)


def initial(case: str, x: torch.Tensor, seed: int = 7) -> torch.Tensor:
    """Returns initial states for the input x, in its memory order."""
    v = current((states(case), *x.shape[1:]), state_dtype(x.dtype), scale=0.5, mean=0.2, seed=seed)
    ordered = torch.empty_strided(v.shape, [x[0].numel(), *x.stride()[1:]], dtype=v.dtype).copy_(v)
    return ordered if states(case) > 1 else ordered[0]


def on_host(x, neuron, v, w, v_mode, **settings):
    return host.by_spec(neuron, x, v, w, v_mode=v_mode, **settings)


def on_cpu(x, neuron, v, w, v_mode):
    """The CPU kernels of the library."""
    return native.multistep(x, v, w, neuron, v_mode)


def by_reference(x, neuron, v, w, v_mode):
    s, v_seq = reference.multistep(x, neuron, v, w)
    if v_mode == 0:
        return s, None
    return s, v_seq if v_mode == 2 else v_seq[-1] if len(NEURONS[neuron.kind].states) == 1 else v_seq[:, -1]


def run(backend, neuron, x, v=None, w=None, loss="sv", v_mode=2, learn=True, **settings):
    """Returns s, v, and the gradients of x, v and w (without those that are None).

    ``loss``: which outputs the loss reads. ``v_mode``: 0 no states, 1 the final ones, 2 those of every time-step.
    ``learn=False``: w needs no gradient.
    """
    leaves = [None if t is None else t.detach().requires_grad_(learn or t is not w) for t in (x, v, w)]
    s, v_out = backend(leaves[0], neuron, *leaves[1:], v_mode, **settings)
    generator = torch.Generator().manual_seed(1)
    total = 0
    for out, letter in ((s, "s"), (v_out, "v")):
        if out is None:
            continue
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        if letter in loss:
            total = total + (out * weight).sum(dtype=torch.float64)
    # A constant leak has no gradient, and without the spikes in the loss a threshold may have none.
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    grads = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    return s.detach(), None if v_out is None else v_out.detach(), grads


def of_each_neuron(neuron, x, v, w, **settings):
    """The gradients of the learnt parameters by the reference, before the sum over neurons: ``[2, M]``, and the channel
    of each neuron."""
    M = x[0].numel()
    channels = torch.zeros(M, dtype=torch.long)
    if w.shape[1] > 1:
        shape = (-1, *[1] * (x.dim() - 3))
        channels = torch.arange(w.shape[1]).view(shape).expand(x.shape[1:]).reshape(-1)
    flat = None if v is None else v.reshape(1, M)
    *_, grads = run(by_reference, neuron, x.reshape(len(x), 1, M), flat, w[:, channels], **settings)
    return grads[-1], channels


def compare(neuron, x, v=None, w=None, loss="sv", v_mode=2, learn=True, **settings):
    """Compares with the reference: spikes and states bit for bit, gradients to the rounding of T time-steps."""
    s, v_out, grads = run(on_host, neuron, x, v, w, loss, v_mode, learn, **settings)
    s_ref, v_ref, grads_ref = run(by_reference, neuron, x, v, w, loss, v_mode)
    torch.testing.assert_close(s, s_ref, rtol=0, atol=0)
    if v_mode:
        torch.testing.assert_close(v_out, v_ref, rtol=0, atol=0, equal_nan=True)
    if not all(g.isfinite().all() and g.abs().max() < 1e30 for g in grads_ref):
        return s, v_out, grads  # exploding gradients (reset not detached, many time-steps) give inf - inf
    for grad, grad_ref in zip(grads[: 1 + (v is not None)], grads_ref, strict=False):
        assert_close(grad, grad_ref, len(x))
    if w is not None and learn:
        terms, channels = of_each_neuron(neuron, x, v, w, loss=loss, v_mode=v_mode)
        zeros = torch.zeros(2, w.shape[1], dtype=torch.float64)
        expected = zeros.index_add(1, channels, terms.double())
        # A term is itself a sum over T, of numbers that are larger than it.
        size = zeros.index_add(1, channels, terms.double().abs() + 1)
        bound = 4 * (len(x) + 4) * EPS[w.dtype] * size
        assert grads[-1].shape == w.shape
        assert ((grads[-1].double() - expected).abs() <= bound).all(), (grads[-1], expected, bound)
    return s, v_out, grads
