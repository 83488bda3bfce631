"""A converted batch norm defers its result: neurons join it through hand-written forwards, and every other use sees the
values that batch norm computes."""

import copy

import pytest
import torch
from blocks import BLOCKS, C, block, lif
from sj_cases import V2, assert_same_step, converted, current, step
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sewsnn.convert import from_spikingjelly
from sewsnn.convert.recorded import channel_axis

SHAPE = (4, 3, C, 6, 6)
every_block = pytest.mark.parametrize("name", BLOCKS)


@every_block
@pytest.mark.parametrize("node", [lif, lambda: neuron.IFNode(step_mode="m", v_reset=None)], ids=["LIF", "soft IF"])
def test_every_structure(name, node):
    """In double, outputs, gradients and running statistics are as before; each neuron after a batch norm joins it."""
    net, neurons = block(name, node)
    net = net.double()
    after, report = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(3):
        assert_same_step(step(after, x), step(net, x), 1e-9)
    assert report.refresh().fused == neurons == len(report)
    assert {entry.calls and sum(entry.calls.values()) for entry in report.replaced} == {3}
    net.eval(), after.eval()
    with torch.no_grad():
        torch.testing.assert_close(after(x), net(x), rtol=1e-9, atol=1e-9)


@every_block
def test_spikes_in_float32(name):
    net, _ = block(name)
    after, _ = converted(net)
    x = current(*SHAPE)
    assert (after(x) - net(x)).abs().max() < 1e-4


@every_block
def test_in_bfloat16(name):
    """Under autocast, outputs are close: batch norm is rounded once less. (0.0.0.0.14 returns float32 there.)"""
    net, neurons = block(name)
    after, report = converted(net)
    x = current(*SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = after(x), net(x)
    assert (actual.float() - expected.float()).abs().mean() < 0.05 * expected.float().abs().mean() + 1e-3
    other_types = name == "cloned"  # its shortcut is in float32, and the other term of the sum in bfloat16
    assert report.refresh().fused == neurons - other_types


@pytest.mark.parametrize(
    "use",
    {
        "detach": lambda y: y.detach() * y,
        "item": lambda y: y * y.mean().item(),
        "relu_": lambda y: y.relu_(),
        "setitem": lambda y: y.__setitem__(0, 0.0) or y,
        "a view in place": lambda y: y.view(-1).mul_(2) is None or y,
        "a part": lambda y: y[:, 1:],
        "stack": lambda y: torch.stack([y, y]),
        "number": lambda y: 2 - y,
        "broadcast": lambda y: y + y[:1],
        "twice": lambda y: y + y,
        "alpha": lambda y: torch.add(y, y.detach(), alpha=3),
        "double": lambda y: y.to(torch.float64).float().double(),
        "view of another type": lambda y: y.detach().view(torch.int64).view(torch.float64) + y,
        "where": lambda y: torch.where(y > 0, y, y.exp()),
        "numpy": lambda y: y * float(y.detach().numpy().max()),
        "copy_": lambda y: torch.zeros_like(y).copy_(y),
        "out": lambda y: torch.mul(y.detach(), 2.0, out=torch.empty_like(y)) + y,
        "loop": lambda y: sum(part for part in y),
        "unsqueeze_": lambda y: y.unsqueeze_(0) is None or y.squeeze(0),
        "transposed in place": lambda y: y.transpose_(0, 1) * 1,
        "repr": lambda y: y * len(repr(y)[:6]),
        "a list": lambda y: torch.cat([part.sum(0) for part in y.chunk(2)]),
    }.items(),
    ids=lambda use: use[0],
)
def test_every_other_use_sees_the_values(use):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.sn = nn.BatchNorm2d(C), lif()

        def forward(self, x):
            y = self.bn(x.flatten(0, 1))
            return use[1](y) + 0 * self.sn(x).sum()

    net = Net().double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(4):  # the norm stops deferring after two calls that nobody joined
        assert_same_step(step(after, x), step(net, x), 1e-10)


class OwnFunction(torch.autograd.Function):
    """torch does not announce its inputs by ``__torch_function__``."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 4).round()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x > 0) & (x < 4))


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


@pytest.mark.parametrize("function", [OwnFunction.apply, scripted], ids=["autograd.Function", "torch.jit"])
@pytest.mark.parametrize("neuron_first", [True, False])
def test_functions_that_do_not_look_at_the_type(function, neuron_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.sn = layer.BatchNorm2d(C, step_mode="m"), lif()

        def forward(self, x):
            y = self.bn(x)
            s = self.sn(y) if neuron_first else 0
            return function(y) + function(y + x) + function(y.transpose(3, 4)) + (s if neuron_first else self.sn(y))

    net = Net().double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(3):
        assert_same_step(step(after, x), step(net, x), 1e-9)


@pytest.mark.parametrize("name", ["reshaped", "membrane"])
def test_compiled(name):
    """torch.compile finds no more graph breaks than before the conversion."""
    net, _ = block(name)
    after, _ = converted(net)
    x = current(*SHAPE)
    breaks = []
    for model in (net, after):
        torch._dynamo.reset()
        breaks.append(torch._dynamo.explain(model)(x).graph_break_count)
        functional.reset_net(model)
    assert breaks[1] <= breaks[0]
    torch._dynamo.reset()
    compiled = torch.compile(after, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    """As before: the function resets the net, because it runs twice. (0.0.0.0.14's scripted code cannot run so.)"""
    net, _ = block("membrane")
    after, _ = converted(net.double())
    net = net if V2 else converted(net, fuse=False)[0]
    x = current(*SHAPE, dtype=torch.float64)

    def run(model, x):
        functional.reset_net(model)
        return model(x)

    gradients = []
    for model in (net, after):
        for _ in range(3):
            model.zero_grad()
            one = x.clone().requires_grad_()
            y = torch.utils.checkpoint.checkpoint(run, model, one, use_reentrant=use_reentrant)
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        gradients.append([one.grad, *(p.grad for p in model.parameters())])
        functional.reset_net(model)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_subclasses():
    """A class that only fixes defaults is converted; one with dynamics of its own is left, with the reason."""

    class Fixed(neuron.LIFNode):
        def __init__(self, tau=3.0):
            super().__init__(tau=tau, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")

        def extra_repr(self):
            return "fixed"

    class Same(Fixed):
        """Adds nothing."""

    class Charged(Fixed):
        def neuronal_charge(self, x):
            self.v = self.v + 2 * x

    class Property(Fixed):
        @property
        def v_threshold(self):
            return 0.5

        @v_threshold.setter
        def v_threshold(self, value):
            pass

    class Mixin:
        def multi_step_forward(self, x_seq):
            return x_seq

    class Mixed(Mixin, Fixed):
        pass

    net = nn.Sequential(*(m for kind in (Fixed, Same) for m in (layer.BatchNorm2d(C, step_mode="m"), kind()))).double()
    after, report = converted(net)
    assert [entry.kind for entry in report.replaced] == ["Fixed", "Same"] and "fixed" in report.replaced[0].settings
    assert isinstance(after[1], Fixed) and type(after[3]).__name__ == "Same"
    x = current(*SHAPE, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-9)
    assert report.refresh().fused == 2
    torch.testing.assert_close(copy.deepcopy(after)(x), net(x))
    for kind, word in ((Charged, "neuronal_charge"), (Property, "v_threshold"), (Mixed, "multi_step_forward")):
        node = kind()
        left = from_spikingjelly(node).left
        assert len(left) == 1 and word in left[0].reason and type(node) is kind


def test_channel_axis():
    size = torch.Size
    assert channel_axis(size([8, 3, 5, 5]), 1, size([4, 2, 3, 25])) == 2
    assert channel_axis(size([8, 3, 5, 5]), 1, size([8, 75])) is None
    assert channel_axis(size([2, 6, 4]), 1, size([2, 3, 2, 4])) is None
    assert channel_axis(size([2, 6, 4]), None, size([2, 6, 4])) is None


@pytest.mark.skipif(V2, reason="0.0.0.0.14 and 2.0 agree here; once is enough")
def test_data_parallel():
    """DistributedDataParallel with one process: gradients as before."""
    import tempfile

    import torch.distributed as dist

    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}.store", rank=0, world_size=1)
        try:
            net, _ = block("membrane")
            net = net.double()
            after, report = converted(net)
            parallel = nn.parallel.DistributedDataParallel(after)
            x = current(*SHAPE, dtype=torch.float64)
            gradients = []
            for model in (net, parallel):
                y = model(x)
                (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
                gradients.append([p.grad for p in model.parameters()])
            for actual, expected in zip(*gradients, strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
            assert report.refresh().fused == 3
        finally:
            dist.destroy_process_group()
