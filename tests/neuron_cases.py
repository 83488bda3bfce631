"""Every neuron besides IF, LIF and PLIF: as a specification, as a node, and as a loop over time-steps in float64."""

import math

import pytest
import torch
from cases import EPS, assert_close, current

from sewsnn import functional, neuron, surrogate
from sewsnn.ops import reference
from sewsnn.ops.neuron import V_FINAL, V_SEQUENCE
from sewsnn.ops.spec import NeuronSpec

BACKENDS = ["torch", "native"]

COUNTS = surrogate.MultiLevelSpikeCount(4)
WINDOW = surrogate.MultiLevelSpikeCount(3, grad_window=(-0.5, 2.5))
#: one or two neurons of every kind, with numbers of their own
SPECS = {
    "CUBALIF": NeuronSpec(
        "CUBALIF", surrogate.Rectangular(1.0), v_threshold=0.5, detach_reset=False, extra=(0.5, 0.75)
    ),
    "CUBALIF soft": NeuronSpec("CUBALIF", surrogate.ATan(2.0), v_threshold=1.5, v_reset=None, extra=(0.3, 0.9)),
    "AdaptiveLIF": NeuronSpec(
        "AdaptiveLIF", surrogate.Sigmoid(4.0), tau=2.5, detach_reset=False, extra=(-0.1, 0.05, 3.0, 0.2, 0.3)
    ),
    "AdaptiveLIF soft": NeuronSpec(
        "AdaptiveLIF", surrogate.Erf(1.5), tau=2.0, v_threshold=0.5, v_reset=None, extra=(0.1, -0.2, 2.0, 0.1, 0.4)
    ),
    "ILIF": NeuronSpec("ILIF", COUNTS, tau=4 / 3, v_reset=None, detach_reset=False, extra=(4, 0, 4, 1)),
    "ILIF / D": NeuronSpec("ILIF", WINDOW, tau=3.0, v_threshold=0.7, v_reset=None, extra=(3, -0.5, 2.5, 3)),
    "QIF": NeuronSpec("QIF", surrogate.Sigmoid(4.0), v_reset=-0.1, detach_reset=False, extra=(0.8, 1.0, 0.0)),
    "QIF soft": NeuronSpec("QIF", surrogate.ATan(2.0), tau=3.0, v_reset=None, extra=(0.6, 0.7, 0.1)),
    "LearntLIF": NeuronSpec("LearntLIF", surrogate.ATan(2.0), v_reset=-0.2, extra=(1.0,)),
    "LearntLIF tau": NeuronSpec(
        "LearntLIF", surrogate.Sigmoid(3.0), tau=3.0, decay_input=False, v_reset=None, detach_reset=False, extra=(0.0,)
    ),
}
every_spec = pytest.mark.parametrize("name", SPECS)


def learnt_of(spec, channels, dtype=torch.float32, device="cpu"):
    """Learnt parameters of a specification, ``[2, channels]``; None: it has none."""
    if spec.kind != "LearntLIF":
        return None
    leak = torch.linspace(0.3, 0.7, channels, dtype=torch.float64)
    return torch.stack([leak, 1.3 - leak]).to(device, reference.state_dtype(dtype))


def state_of(spec, shape, dtype=torch.float32, device="cpu"):
    """A state to start from, ``[...]`` or ``[k, ...]``."""
    states = len(reference.NEURONS[spec.kind].states)
    return current((states, *shape) if states > 1 else shape, reference.state_dtype(dtype), device, scale=0.4, seed=9)


def run(spec, x, backend, state=None, learnt=None, loss="sv", sequence=False):
    """(s, state, gradients of x, state, learnt); ``backend="reference"``: on the CPU, by autograd."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, state, learnt)]
    if backend == "reference":
        x, state, learnt = (None if t is None else t.cpu() for t in leaves)
        s, out = reference.multistep(x, spec, state, learnt)
        if not sequence:
            out = out[-1] if len(reference.NEURONS[spec.kind].states) == 1 else out[:, -1]
    else:
        x, state, learnt = leaves
        s, out = functional.multistep(
            x, state, spec, learnt, v_mode=V_SEQUENCE if sequence else V_FINAL, backend=backend
        )
    total = 0
    for tensor, letter, seed in ((s, "s", 1), (out, "v", 2)):
        if letter in loss:
            weight = current(tensor.shape, tensor.dtype, tensor.device, mean=0.1, seed=seed)
            total = total + (tensor * weight).sum(dtype=torch.float64)
    grads = torch.autograd.grad(total, [t for t in leaves if t is not None])
    return s.detach(), out.detach(), [g.cpu() for g in grads]


def compare(spec, x, backend, **options):
    """Compares a backend with the reference: spikes and states bit for bit, gradients up to rounding."""
    s, out, grads = run(spec, x, backend, **options)
    s_ref, out_ref, expected = run(spec, x, "reference", **options)
    torch.testing.assert_close(s.cpu(), s_ref, rtol=0, atol=0)
    torch.testing.assert_close(out.cpu(), out_ref, rtol=0, atol=0)
    if all(g.isfinite().all() and (not g.numel() or g.abs().max() < 1e30) for g in expected):
        tensors = len(grads) - (options.get("learnt") is not None)
        for grad, reference_grad in zip(grads[:tensors], expected[:tensors], strict=True):
            assert_close(grad, reference_grad, len(x))
        if tensors < len(grads):
            _assert_sums_close(spec, grads[-1], expected[-1], x, expected[0], options["learnt"])
    return s, out, grads


def _assert_sums_close(spec, grad, expected, x, grad_x, learnt):
    """The gradient of a learnt number is a sum of T M / C terms. A term is at most dL/dh, which is dL/dx / leak, times
    the largest input or potential; it has the rounding of dL/dx, and a sum of n terms that of log2 n additions more."""
    terms = x.numel() / learnt.shape[1]
    largest = float(grad_x.abs().max()) / float(learnt[0].min()) * (1 + float(x.abs().max()))
    if not spec.extra[0]:  # a leak that is a constant has no gradient
        grad, expected = grad[1:], expected[1:]
    bound = 4 * (len(x) + 4 + math.log2(max(terms, 2))) * EPS[learnt.dtype] * terms * largest
    if x.element_size() == 2:
        bound += terms**0.5 * EPS[x.dtype] * largest  # grad_x, from which `largest` comes, is rounded
    torch.testing.assert_close(grad, expected, rtol=0, atol=bound)


# ---- the equations once more, as loops over time-steps in float64, with spikes that have no gradient


def _reset(h, s, threshold, v_reset):
    return h - s * threshold if v_reset is None else torch.where(s > 0, torch.full_like(h, v_reset), h)


def _cubalif(x, c_decay=0.5, v_decay=0.75, v_threshold=0.5, v_reset=0.0):
    v, c = torch.full_like(x[0], v_reset or 0.0), torch.zeros_like(x[0])
    for x_t in x:
        c = c_decay * c + x_t
        h = v_decay * v + c
        s = (h >= v_threshold).double()
        v = _reset(h, s, v_threshold, v_reset)
        yield s, v, c


def _adaptive(x, tau=2.0, v_rest=0.0, w_rest=0.0, tau_w=2.0, a=0.0, b=0.0, v_threshold=1.0, v_reset=0.0):
    v, w = torch.full_like(x[0], v_reset or 0.0), torch.full_like(x[0], w_rest)
    for x_t in x:
        h = v + (x_t - (v - v_rest) - w) / tau
        w = w + (a * (h - v_rest) - w) / tau_w
        s = (h >= v_threshold).double()
        w = w + b * s
        v = _reset(h, s, v_threshold, v_reset)
        yield s, v, w


def _ilif(x, tau=4 / 3, v_threshold=1.0, D=4, normalize=False):
    v = torch.zeros_like(x[0])
    for x_t in x:
        h = (1 - 1 / tau) * v + x_t
        n = torch.tensor([round(min(max(float(u) / v_threshold, 0), D)) for u in h.flatten()]).double().view_as(h)
        v = h - n * v_threshold
        yield n / D if normalize else n, v


def _qif(x, tau=2.0, v_c=0.8, a0=1.0, v_threshold=1.0, v_rest=0.0, v_reset=-0.1):
    v = torch.full_like(x[0], v_reset or 0.0)
    for x_t in x:
        h = v + (x_t + a0 * (v - v_rest) * (v - v_c)) / tau
        s = (h >= v_threshold).double()
        v = _reset(h, s, v_threshold, v_reset)
        yield s, v


#: name -> node, loop, settings that both take
NODES = {
    "CUBALIF": (neuron.CUBALIFNode, _cubalif, {}),
    "CUBALIF set": (
        neuron.CUBALIFNode,
        _cubalif,
        {"c_decay": 0.3, "v_decay": 0.9, "v_threshold": 1.2, "v_reset": None},
    ),
    "AdaptiveLIF": (neuron.AdaptiveLIFNode, _adaptive, {}),
    "AdaptiveLIF set": (
        neuron.AdaptiveLIFNode,
        _adaptive,
        {
            "tau": 1.7,
            "v_rest": 0.1,
            "w_rest": 0.2,
            "tau_w": 3.0,
            "a": 0.3,
            "b": 0.4,
            "v_threshold": 0.6,
            "v_reset": -0.2,
        },
    ),
    "ILIF": (neuron.ILIFNode, _ilif, {}),
    "ILIF set": (neuron.ILIFNode, _ilif, {"tau": 2.0, "v_threshold": 0.8, "normalize": True}),
    "QIF": (neuron.QIFNode, _qif, {}),
    "QIF set": (
        neuron.QIFNode,
        _qif,
        {"tau": 3.0, "v_c": 0.5, "a0": 0.6, "v_threshold": 0.9, "v_rest": 0.1, "v_reset": None},
    ),
}
every_node = pytest.mark.parametrize("name", NODES)


def make(name, backend="auto", **options):
    """A node with its settings."""
    node, _, settings = NODES[name]
    return node(**settings, backend=backend, **options)


def by_loop(name, x):
    """The states and spikes of every time-step by the loop: tensors ``[T, ...]``, s first, then the states."""
    _, loop, settings = NODES[name]
    return [torch.stack(rows) for rows in zip(*loop(x, **settings), strict=True)]
