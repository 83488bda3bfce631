"""Max pooling in converted models: between a batch norm and a neuron, and by itself."""

import copy
import pickle

import pytest
import torch
from blocks import BLOCKS, C, lif
from sj_cases import assert_same_step, converted, current, step
from spikingjelly.activation_based import functional, layer
from torch import nn

from sewsnn.convert import from_spikingjelly
from sewsnn.convert.poolings import Pooling

SHAPE = (4, 3, C, 6, 6)


def mixed_signs(net):
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data[::2] *= -1
            module.weight.data[1] = 0
    return net


@pytest.mark.parametrize("name", ["pooled", "pooled sum"])
def test_weights_of_either_sign(name):
    """Where a weight is negative, the minimum of the input is the maximum of the result."""
    net = mixed_signs(BLOCKS[name][0](lif).double())
    after, report = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(3):
        assert_same_step(step(after, x), step(net, x), 1e-9)
    assert report.refresh().fused == BLOCKS[name][1]
    with torch.no_grad():
        torch.testing.assert_close(after.eval()(x), net.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "pool",
    {
        "not square": lambda y: nn.functional.max_pool2d(y, (2, 3)),
        "ceil_mode": lambda y: nn.functional.max_pool2d(y, 4, ceil_mode=True),
        "dilation": lambda y: nn.functional.max_pool2d(y, 2, dilation=2),
        "indices": lambda y: nn.functional.max_pool2d(y, 2, return_indices=True)[0],
        "twice": lambda y: nn.functional.max_pool2d(nn.functional.max_pool2d(y, 2), 2),
        "of a sum": lambda y: nn.functional.max_pool2d(y + y.detach(), 2),
        "transposed": lambda y: nn.functional.max_pool2d(y.transpose(1, 2), 2).transpose(1, 2),
        "average": lambda y: nn.functional.avg_pool2d(y, 2),
        "3d": lambda y: nn.functional.max_pool2d(y[0], 2).unsqueeze(0).repeat(4, 1, 1, 1),
        "torch": lambda y: torch.max_pool2d(y, [2], stride=[2]),
    }.items(),
    ids=lambda pool: pool[0],
)
def test_every_pooling_has_the_right_values(pool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.sn = nn.BatchNorm2d(C), lif()

        def forward(self, x):
            return self.sn(pool[1](self.bn(x.flatten(0, 1))).unsqueeze(0))

    net = mixed_signs(Net().double())
    after, report = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(4):
        assert_same_step(step(after, x), step(net, x), 1e-9)
    assert report.refresh().fused == (pool[0] == "torch")


@pytest.mark.parametrize("uses", ["before", "after"])
def test_values_that_somebody_else_reads(uses):
    """The result of batch norm, or of the pooling, is used beside the neuron."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.pool, self.sn = layer.BatchNorm2d(C, step_mode="m"), nn.MaxPool2d(2), lif()

        def forward(self, x):
            y = self.bn(x)
            z = self.pool(y.flatten(0, 1)).unflatten(0, x.shape[:2])
            s = self.sn(z)
            return s * ((y if uses == "before" else z).exp().mean() + 1)

    net = mixed_signs(Net().double())
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(4):
        assert_same_step(step(after, x), step(net, x), 1e-9)


def pooling_net():
    return nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), lif(), layer.SeqToANNContainer(nn.MaxPool2d(3, 2, 1)))


def test_a_module_by_itself():
    """Values and gradients are those of torch bit for bit; it stays a MaxPool2d in every other respect."""
    net = pooling_net()
    after, report = converted(net)
    assert report.poolings == ["2.0"] and "max poolings by sewsnn's op: 1" in str(report)
    pool, theirs = after[2][0], net[2][0]
    assert isinstance(pool, nn.MaxPool2d) and type(pool).__name__ == "MaxPool2d" and repr(pool) == repr(theirs)
    for x in (
        current(*SHAPE[1:]).round(),
        current(*SHAPE[1:]).contiguous(memory_format=torch.channels_last),
        current(2, 3, 12, 7)[:, :, ::2],
        current(C, 6, 6),
        current(2, C, 6, 6, dtype=torch.float64),
    ):
        one, other = (x.clone().requires_grad_() for _ in range(2))
        out, expected = pool(one), theirs(other)
        assert torch.equal(out, expected) and out.stride() == expected.stride()
        out.sin().sum().backward(), expected.sin().sum().backward()
        assert torch.equal(one.grad, other.grad)


def test_copies_settings_and_the_way_back():
    _, (after, _) = pooling_net(), converted(pooling_net())
    x = current(*SHAPE)
    for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        assert isinstance(copied[2][0], Pooling)
        assert torch.equal(copied(x), after(x))
        for net in (copied, after):
            net[1].reset()
    pool = after[2][0]
    y = current(2, C, 6, 6)
    for settings in ({"kernel_size": 2}, {"ceil_mode": True}, {"return_indices": True}):
        for name, value in settings.items():
            setattr(pool, name, value)
        expected = nn.functional.max_pool2d(y, pool.kernel_size, 2, 1, 1, pool.ceil_mode, pool.return_indices)
        found = pool(y)
        pairs = zip(found, expected, strict=True) if pool.return_indices else [(found, expected)]
        assert all(torch.equal(*pair) for pair in pairs)
    from_spikingjelly(after, fuse=False)
    assert type(pool) is nn.MaxPool2d


def test_hooks_and_classes_of_others():
    class Own(nn.MaxPool2d):
        def forward(self, x):
            return -super().forward(x)

    net, seen = pooling_net(), []
    net[2][0].register_forward_hook(lambda module, args, out: seen.append(out))
    net.append(layer.SeqToANNContainer(Own(2)))
    after, report = converted(net)
    assert report.poolings == ["2.0"]
    x = current(*SHAPE)
    assert torch.equal(after(x), net(x)) and torch.equal(*seen)


def test_second_derivative_without_neurons():
    _, (after, _) = pooling_net(), converted(pooling_net())
    x = current(2, C, 6, 6, dtype=torch.float64).requires_grad_()
    results = []
    for pool in (after[2][0], nn.MaxPool2d(3, 2, 1)):
        (first,) = torch.autograd.grad(pool(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.equal(*results)


def test_checkpointing_and_compile():
    from torch.utils.checkpoint import checkpoint

    _, (after, _) = pooling_net(), converted(pooling_net())
    pool = after[2][0]
    x = current(2, C, 6, 6).requires_grad_()
    expected = torch.autograd.grad(pool(x).sin().sum(), x)[0]
    again = checkpoint(lambda x: pool(x).sin(), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], expected)
    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True)
    assert torch.equal(torch.autograd.grad(compiled(x).sin().sum(), x)[0], expected)
    torch.testing.assert_close(torch.func.grad(lambda x: pool(x).sin().sum())(x.detach()), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("part", ["pool", "bn and pool", "conv, bn and pool"])
def test_checkpointed_parts(part, use_reentrant):
    """A function of some of the modules is repeated in backward; the neuron stands outside."""
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.pool = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.MaxPool2d(2)
            self.sn = lif()

        def forward(self, x):
            y = x.flatten(0, 1)
            parts = [self.conv, self.bn, self.pool]
            number = part.count(",") + part.count("and") + 1
            for module in parts[: 3 - number]:
                y = module(y)
            y = checkpoint(nn.Sequential(*parts[3 - number :]), y, use_reentrant=use_reentrant)
            return self.sn(y.unflatten(0, x.shape[:2]))

    net = Net().double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(5):
        results = []
        for model in (after, net):  # by backward(): torch's reentrant checkpoints have no autograd.grad
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            out = model(leaf)
            (out * current(*out.shape, dtype=torch.float64, seed=3)).sum().backward()
            results.append([out, leaf.grad, *(p.grad for p in model.parameters()), *model.buffers()])
            functional.reset_net(model)
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_forward_mode_derivatives_and_scripts():
    _, (after, _) = pooling_net(), converted(pooling_net())
    pool, x = after[2][0], current(2, C, 6, 6)
    for leaf in (x, x.clone().requires_grad_()):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(leaf, torch.ones_like(x))
            assert torch.equal(torch.autograd.forward_ad.unpack_dual(pool(dual)).tangent, torch.ones(2, C, 3, 3))
    for module in (pool, nn.Sequential(pool)):
        assert torch.equal(torch.jit.script(module)(x), pool(x))
    assert isinstance(pool, Pooling)
    assert torch.equal(torch.jit.trace(pool, x)(x), pool(x))
