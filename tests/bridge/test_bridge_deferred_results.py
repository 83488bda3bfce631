"""What becomes of the deferred result of a batch norm: kept, copied, read late, changed, differentiated."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from blocks import C, block, lif
from sj_cases import converted, current
from spikingjelly.activation_based import functional, layer, monitor
from torch import nn

from sewsnn.convert.deferred import Deferred

SHAPE = (4, 3, C, 6, 6)


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
