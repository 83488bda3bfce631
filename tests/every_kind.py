"""Every neuron that there is, by its nodes, and the comparison of its kernels with the reference."""

import inspect
import itertools

import torch
from cases import assert_close, current

from sewsnn import neuron
from sewsnn.ops import reference
from sewsnn.ops.spec import NeuronSpec


def _nodes():
    """Functions that make a node, by name: each class with its defaults, and what its options switch on."""
    made = {name: getattr(neuron, name) for name in neuron.__all__ if name != "BaseNode"}
    options = {"learn_threshold": True, "learn_tau": True}
    for name, kind in list(made.items()):
        if options.keys() <= inspect.signature(kind).parameters.keys():
            made[f"{name}, learnt"] = lambda kind=kind, **kw: kind(**options, **kw)
    return made


NODES = _nodes()
KIND = {name: make().kind for name, make in NODES.items()}


def resets(name):
    """The settings of v_reset and detach_reset that a node takes."""
    settings = inspect.signature(NODES[name]).parameters
    fixed = "v_reset" not in settings and not any(p.kind is p.VAR_KEYWORD for p in settings.values())
    values = [{}] if fixed else [{"v_reset": value} for value in (0.0, -0.25, None)]
    return [value | {"detach_reset": detach} for value, detach in itertools.product(values, (False, True))]


def learnt_of(node, dtype, channels=1):
    """The learnt parameters of a node as a leaf; for several channels each has other numbers."""
    learnt = node.learnt_parameters(reference.state_dtype(dtype))
    if learnt is None:
        return None
    learnt = learnt.detach()
    if channels > 1 and reference.NEURONS[node.kind].per_channel:
        learnt = learnt * current((len(learnt), channels), learnt.dtype, scale=0.1, mean=1.0, seed=7).clamp(0.7, 1.3)
    return learnt.requires_grad_()


def by_reference(x, state, learnt, spec):
    return reference.multistep(x, spec, state, learnt)


def run(call, spec, x, state, learnt):
    """Spikes, states of all time-steps, and the gradients of the inputs."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in (x, state, learnt)]
    s, states = call(*inputs, spec)
    weights = (current(t.shape, t.dtype, t.device, mean=0.1, seed=3 + i) for i, t in enumerate((s, states)))
    total = sum((t * weight).sum(dtype=torch.float64) for t, weight in zip((s, states), weights, strict=True))
    return s.detach(), states.detach(), torch.autograd.grad(total, [t for t in inputs if t is not None])


def compare(call, spec: NeuronSpec, x, state=None, learnt=None):
    """Compares ``call(x, state, learnt, spec)`` with the reference: spikes and states bit for bit, gradients up to
    rounding."""
    s, states, grads = run(call, spec, x, state, learnt)
    on_cpu = [None if t is None else t.cpu() for t in (x, state, learnt)]
    s_ref, states_ref, grads_ref = run(by_reference, spec, *on_cpu)
    assert s_ref.any()
    torch.testing.assert_close(s.cpu(), s_ref, rtol=0, atol=0)
    torch.testing.assert_close(states.cpu(), states_ref, rtol=0, atol=0)
    if len(x) > 16 and not all(grad.isfinite().all() for grad in grads_ref):
        return  # gradients that explode over many time-steps give inf - inf
    if learnt is not None:  # a sum over all neurons and time-steps
        grad, expected = grads[-1].cpu(), grads_ref[-1]
        bound = 64 * torch.finfo(grad.dtype).eps * x.numel() ** 0.5
        assert grad.abs().min() > 0
        torch.testing.assert_close(grad, expected, rtol=bound, atol=bound * float(x.numel()) ** 0.5)
        grads, grads_ref = grads[:-1], grads_ref[:-1]
    for grad, expected in zip(grads, grads_ref, strict=True):
        assert grad.abs().max() > 0
        assert_close(grad.cpu(), expected, len(x))


def cases(name):
    """Settings of the node, T, dtype, whether an initial state is given, whether channels differ."""
    dtypes = itertools.cycle((torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16))
    for i, (settings, T) in enumerate(itertools.product(resets(name), (1, 4, 7, 18))):
        yield settings, T, next(dtypes), i % 3 == 1, i % 2 == 0


def inputs(node, T, dtype, given, channels, device="cpu"):
    """x ``[T, N, C, H, W]``, an initial state or None, and the learnt parameters or None."""
    shape = (T, 3, 5, 2, 3)
    states = len(reference.NEURONS[node.kind].states)
    state = None
    if given:
        sizes = shape[1:] if states == 1 else (states, *shape[1:])
        state = current(sizes, reference.state_dtype(dtype), device, scale=0.3, mean=0.2, seed=1)
    learnt = learnt_of(node, dtype, 5 if channels else 1)
    return current(shape, dtype, device), state, None if learnt is None else learnt.to(device)
