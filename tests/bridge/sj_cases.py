"""Running a model before and after its conversion."""

import copy

import torch
from spikingjelly.activation_based import functional, neuron

import sewsnn

#: SpikingJelly 2.0 or later
V2 = hasattr(neuron.BaseNode, "materialize_states")
SURROGATES = ("ATan", "Erf", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign")
SURROGATES += ("SuperSpike",) if V2 else ()
NODES = {"IF": neuron.IFNode, "LIF": neuron.LIFNode, "PLIF": neuron.ParametricLIFNode}

# Gradients differ by rounding alone: a few operations per time-step, in another order.
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}


def current(*shape, seed=0, dtype=torch.float32):
    """Input currents that make neurons fire about every second or third time-step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.8).to(dtype)


def converted(model, **options):
    """A converted copy, and the report."""
    model = copy.deepcopy(model)
    report = sewsnn.convert.from_spikingjelly(model, **options)
    assert report.model is model
    return model, report


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def step(model, x, seed=0):
    """One training step from rest: output, gradients by name, buffers by name. x gets a gradient, too."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)  # of dropout
    y = model(x)
    parameters = dict(model.named_parameters())
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = gradients((y * weights).sum(), [x, *parameters.values()])
    functional.reset_net(model)
    return y.detach(), dict(zip(["x", *parameters], found, strict=True)), dict(model.named_buffers())


def assert_same_step(actual, expected, **tolerance):
    torch.testing.assert_close(actual[0], expected[0], **tolerance)
    for one, other in zip(actual[1:], expected[1:], strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            scale = float(value.abs().max()) if value.is_floating_point() and value.numel() else 1.0
            scaled = {"rtol": tolerance["rtol"], "atol": tolerance["atol"] * max(scale, 1.0)}
            torch.testing.assert_close(one[name], value, **scaled, msg=lambda text, name=name: f"{name}: {text}")


def spikes(model, x):
    """What every neuron puts out, by name: watched, so that no neuron is fused."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, neuron.BaseNode):
            hooks.append(module.register_forward_hook(lambda _, __, s, name=name: found.update({name: s.detach()})))
    torch.manual_seed(0)
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    functional.reset_net(model)
    return found
