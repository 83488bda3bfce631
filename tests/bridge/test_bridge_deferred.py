"""A converted batch norm defers its result: neurons join it through hand-written forwards, and every other use sees the
values that batch norm computes."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from blocks import BLOCKS, C
from sj_cases import V2, assert_same_step, converted, current, step
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from torch import nn

from sewsnn.convert import from_spikingjelly
from sewsnn.convert.deferred import Deferred
from sewsnn.convert.recorded import channel_axis

SHAPE = (4, 3, C, 6, 6)
every_block = pytest.mark.parametrize("name", BLOCKS)


def lif(**settings):
    return neuron.LIFNode(step_mode="m", **settings)


def block(name, node=lif):
    torch.manual_seed(0)
    make, neurons = BLOCKS[name]
    net = make(node)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.8, 1.6)
            module.bias.data.uniform_(0.2, 1.0)
    return net, neurons


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


def pair():
    net = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), lif())
    after, report = converted(net.double())
    return net, after, report


def deferring_pair():
    """The same after a call that a neuron has joined: from now on batch norm defers its results."""
    net, after, report = pair()
    x = current(*SHAPE, dtype=torch.float64)
    net(x), after(x)
    functional.reset_net(net), functional.reset_net(after)
    return net, after, report.refresh()


def test_running_statistics_are_current():
    """They change when batch norm is called, not when its result is used; calls count in their order."""
    net, after, _ = pair()
    x = [current(*SHAPE, dtype=torch.float64, seed=seed) for seed in range(3)]
    for _ in range(2):
        deferred = [after[0](one) for one in x]
        for one in x:
            net[0](one)
        for name, buffer in net[0].named_buffers():
            torch.testing.assert_close(dict(after[0].named_buffers())[name], buffer, rtol=1e-12, atol=1e-12)
        after[1](deferred[2])
    assert deferred[0].shape == SHAPE and torch.is_tensor(deferred[0]) and isinstance(deferred[0], torch.Tensor)


def test_a_result_that_is_kept():
    """It may be read after a backward pass. After a change of what it depends on, it raises an error."""
    net, after, _ = deferring_pair()
    x = current(*SHAPE, dtype=torch.float64)
    kept, also = after[0](x), after[0](x)
    expected = net[0](x)
    assert not kept.known
    after[1](kept).sum().backward()
    torch.testing.assert_close(kept.detach(), expected)
    with torch.no_grad():
        after[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"BatchNorm2d 0 .*its weight was changed in place.*fuse=False"):
        also + 1
    _, after, _ = deferring_pair()  # a norm whose values somebody has used stops
    z = x.clone()
    late = after[0](z)
    z += 1
    with pytest.raises(RuntimeError, match="its input was changed in place"):
        late.sum()
    _, after, _ = deferring_pair()
    shortcut = x.clone()
    total = after[0](x) + shortcut
    shortcut.zero_()
    with pytest.raises(RuntimeError, match="the shortcut was changed in place"):
        after[1](total)


def test_hooks_see_values():
    """Hooks on the norm or the neuron keep them apart; a container's hook may read the deferred result."""
    net, after, report = pair()
    x = current(*SHAPE, dtype=torch.float64)
    seen = []
    for module in (after[0], after[1]):
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out.detach().sum()))
        assert torch.equal(after(x), net(x))
        functional.reset_net(after), functional.reset_net(net)
        handle.remove()
    assert len(seen) == 2 and report.refresh().fused == 0 and "hooks" in report.replaced[0].reason
    outer = nn.Sequential(nn.Sequential(after[0]), after[1])
    outer[0].register_forward_hook(lambda _, __, out: seen.append(out))
    torch.testing.assert_close(outer(x), net(x))
    torch.testing.assert_close(seen[2].detach(), net[0](x).detach())


def test_a_monitor_of_a_container():
    net, after, _ = pair()
    outer = nn.Sequential(nn.Sequential(after[0]), after[1])
    watch = monitor.OutputMonitor(outer, nn.Sequential)
    x = current(*SHAPE, dtype=torch.float64)
    outer(x)
    assert any(torch.allclose(torch.as_tensor(record), net[0](x)) for record in watch.records)


def test_optimizers_copies_and_pickles():
    net, after, _ = pair()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (net, after)]
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(3):
        for model, optimizer in zip((net, after), optimizers, strict=True):
            optimizer.zero_grad()
            (model(x) * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum().backward()
            optimizer.step()
            functional.reset_net(model)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    assert list(after.state_dict()) == list(net.state_dict())
    expected = net.eval()(x)
    after.eval()
    for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        torch.testing.assert_close(copied(x), expected, rtol=1e-9, atol=1e-9)
        assert [type(module) for module in copied.modules()] == [type(module) for module in after.modules()]
    y = after[0](x)
    assert type(y) is Deferred
    torch.testing.assert_close(copy.deepcopy(y.detach()), net[0](x).detach())
    torch.testing.assert_close(pickle.loads(pickle.dumps(y.detach())), net[0](x).detach())


def test_nothing_is_kept_alive():
    net, _ = block("membrane")
    after, _ = converted(net)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            x = current(*SHAPE).requires_grad_()
            alive = weakref.ref(x)
            after(x).sum().backward()
            functional.reset_net(after)
            del x
            assert alive() is None
    finally:
        gc.enable()


def test_gradient_modes():
    net, after, _ = pair()
    x = current(*SHAPE, dtype=torch.float64)
    with torch.no_grad():
        y = after[0](x)
    s = after[1](y)
    assert not s.requires_grad and not y.requires_grad
    functional.reset_net(after)
    y = after[0](x.requires_grad_())
    assert y.requires_grad and not y.is_leaf
    with torch.no_grad():
        assert not after[1](y).requires_grad
    y = after[0](x)
    with torch.inference_mode():
        functional.reset_net(after)
        torch.testing.assert_close(after(x), net(x))
        torch.testing.assert_close(y * 1, net[0](x))
    (y * y).sum().backward()


def test_gradients_of_the_result_itself():
    """Hooks and retained gradients see all of it if they come before the neuron; later they raise an error."""
    net, after, _ = deferring_pair()
    x = current(*SHAPE, dtype=torch.float64)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    seen = []
    for model in (net, after):
        y = model[0](x)
        y.register_hook(seen.append)
        y.retain_grad()
        (model[1](y) * weights).sum().backward()
        torch.testing.assert_close(y.grad, seen[-1])
        functional.reset_net(model)
    torch.testing.assert_close(seen[1], seen[0])
    _, after, _ = deferring_pair()
    y = after[0](x)
    loss = after[1](y).sum() + (y * 2).sum()
    for ask in (lambda: y.register_hook(seen.append), y.retain_grad, lambda: torch.autograd.grad(loss, [y])):
        with pytest.raises(RuntimeError, match=r"before the neuron is called.*fuse=False"):
            ask()


class Returned(torch.autograd.Function):
    """Returns its input, a copy and a view of it, as DistributedDataParallel's functions do."""

    @staticmethod
    def forward(ctx, x):
        return x.clone(), x.view(-1)

    @staticmethod
    def backward(ctx, one, other):
        return one + other.view_as(one)


def test_results_that_a_function_returns():
    net, after, _ = pair()
    x = current(*SHAPE, dtype=torch.float64)
    found = []
    for model in (net, after):
        one, other = Returned.apply(model[0](x))
        loss = (one.pow(2) * 0.5).sum() + other.sin().sum()
        found.append([one, other, *torch.autograd.grad(loss, list(model.parameters()))])
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("first", ["read", "joined"])
def test_programs_that_change(first):
    """Two calls before backward, results that are read in one call and joined in another, other modes and settings
    between call and use: always as before."""
    net, after, _ = pair() if first == "read" else deferring_pair()
    x = [current(*SHAPE, dtype=torch.float64, seed=seed) for seed in range(3)]

    def program(model, turn):
        norm, node = model
        one, two = norm(x[0]), norm(x[1])
        loss = (one.relu() if turn % 2 else node(one)).sin().sum()
        functional.reset_net(model)
        with torch.no_grad():
            norm(x[2])
        norm.eval()
        shown = norm(x[2])  # (torch's own backward is wrong if a training call follows: it reads the new statistics)
        norm.train()
        loss = loss + (node(two) * shown).sum() + (two * x[2]).sum() * (turn % 3)
        functional.reset_net(model)
        return loss, *torch.autograd.grad(loss, list(norm.parameters())), *norm.buffers()

    for turn in range(6):
        for actual, expected in zip(program(after, turn), program(net, turn), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_a_norm_that_no_neuron_joins_stops():
    net = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), nn.Tanh(), lif())
    after, report = converted(net)
    x = current(*SHAPE)
    kinds = []
    for _ in range(4):
        y = after[0](x)
        kinds.append(type(y))
        assert torch.equal(after[1:](y), net(x))
        functional.reset_net(after), functional.reset_net(net)
    assert kinds == [Deferred, torch.Tensor, torch.Tensor, torch.Tensor]
    for name, buffer in net.named_buffers():
        assert torch.equal(dict(after.named_buffers())[name], buffer), name
    assert report.refresh().fused == 0 and "not the result of a batch norm" in report.replaced[0].reason


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
