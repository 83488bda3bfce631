"""Runs a model before and after its conversion."""

import contextlib
import copy

import torch
from spikingjelly.activation_based import functional, neuron

import sewsnn

#: SpikingJelly 2.0 or later
V2 = hasattr(neuron.BaseNode, "materialize_states")
SURROGATES = ("ATan", "Erf", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign")
SURROGATES += ("SuperSpike", "Rect") if V2 else ()
NODES = {"IF": neuron.IFNode, "LIF": neuron.LIFNode, "PLIF": neuron.ParametricLIFNode}
#: nodes with a class of their own, which not every version has
FURTHER = {
    name: getattr(neuron, f"{name}Node") for name in ("QIF", "CUBALIF", "ILIF") if hasattr(neuron, f"{name}Node")
}

# Gradients differ only by rounding: a few operations per time-step, in another order.
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}


def current(*shape, seed=0, dtype=torch.float32):
    """Input currents with which neurons fire about every second or third time-step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.8).to(dtype)


def make(kind, **settings):
    """A node of any kind with settings, which not every class takes as arguments. ILIF has a tau with which its two
    step modes round alike in SpikingJelly."""
    node = (NODES | FURTHER)[kind]()
    defaults = {"tau": 2.0} if kind == "ILIF" else {}
    for name, value in {**defaults, **settings}.items():
        setattr(node, name, value)
    if "v_reset" in settings:
        rest = settings["v_reset"] or 0.0
        node.set_reset_value("v", rest)
        node.reset()
    return node


def converted(model, **options):
    """Returns a converted copy and the report."""
    model = copy.deepcopy(model)
    report = sewsnn.convert.from_spikingjelly(model, **options)
    assert report.model is model
    return model, report


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


@contextlib.contextmanager
def watched(model, seen):
    """Collects the output of every neuron by name. The hook prevents the fusion of the neuron."""
    hooks = [
        module.register_forward_hook(lambda _, __, s, name=name: seen.update({name: s.detach()}))
        for name, module in model.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    yield
    for hook in hooks:
        hook.remove()


def step(model, x, seen=None):
    """Runs one training step from rest. Returns output, gradients (also of x) and buffers by name.

    ``seen`` collects the spikes of all neurons."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)  # for dropout
    with contextlib.nullcontext() if seen is None else watched(model, seen):
        y = model(x)
    parameters = dict(model.named_parameters())
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = gradients((y * weights).sum(), [x, *parameters.values()])
    functional.reset_net(model)
    return {"out": y.detach(), **dict(model.named_buffers())}, dict(zip(["x", *parameters], found, strict=True))


def assert_same_step(actual, expected, tolerance):
    """Compares every tensor with a tolerance relative to its largest number."""
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            difference, scale = (one[name] - value).abs().max(), value.abs().max()
            assert difference <= tolerance * max(scale, 1e-3), (name, float(difference), float(scale))
