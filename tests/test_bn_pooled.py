"""Batch norm + neuron + connection with max pooling before or after the neuron."""

import copy

import pytest
import torch
from bn_cases import CONNECTIONS, NODES, norm
from cases import current
from torch import nn

import sewsnn
from sewsnn import neuron
from sewsnn.layers import BNNeuron, NeuronConnection, bn_neuron
from sewsnn.layers.plan import by_modules
from sewsnn.layers.pooling import pool_images

POOLS = {"3x3": lambda: nn.MaxPool2d(3, 2, 1), "2x2": lambda: nn.MaxPool2d(2), "5x5": lambda: nn.MaxPool2d(5, 3, 2)}
pools = pytest.mark.parametrize("pool", POOLS)


def pooled_shape(pool, shape):
    return pool(torch.empty(shape).flatten(0, -4)).unflatten(0, shape[:-3]).shape


def ordered(x, channels_last):
    return x.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else x


def both(z, bn, node, shortcut, pool, device="cpu", seed=0, **options):
    """Outputs, states, buffers and gradients of the ops and of the modules."""
    results = []
    for fused in (True, False):
        one_bn, one = copy.deepcopy(bn), copy.deepcopy(node)
        leaves = [z.detach().requires_grad_()]
        leaves += [] if shortcut is None else [shortcut.detach().requires_grad_()]
        given = leaves[1] if shortcut is not None else None
        out = bn_neuron(leaves[0], one_bn, one, given, pool=pool, fused=fused, **options)
        terms = [t for t in (out.out, out.skip) if t is not None]
        loss = sum((t * current(t.shape, t.dtype, device, seed=seed + i)).sum() for i, t in enumerate(terms))
        leaves += [*one_bn.parameters()] if one_bn is not None else []
        leaves += [] if one is None else [*one.parameters()]
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        state = None if one is None else one.v
        buffers = [] if one_bn is None else [*one_bn.buffers()]
        results.append([out.out, out.skip, state, *buffers, *found])
    return results


def compare(results, tolerance):
    for i, (actual, expected) in enumerate(zip(*results, strict=True)):
        if expected is None or not isinstance(expected, torch.Tensor):
            assert actual is None or not isinstance(actual, torch.Tensor), i
            continue
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda m, i=i: f"{i}: {m}")


@pools
@pytest.mark.parametrize("before", (False, True))
@pytest.mark.parametrize("name", NODES)
def test_like_the_modules(name, before, pool, device):
    """In double: results, states and all gradients, for every connection, T on both sides of 16, any layout, training
    and evaluation, a sequence and a still image, weights of either sign and 0."""
    pool, tried = POOLS[pool](), 0
    for i, connection in enumerate((*CONNECTIONS, "sum", "skip")):
        if name == "none" and connection == "sum":
            continue
        for T, rest in ((1, (3, 8, 5, 6)), (4, (2, 6, 9, 8)), (18, (1, 16, 4, 4))):
            turn = i + tried
            connect_f, connect_before = CONNECTIONS.get(connection, ("ADD", connection == "sum"))
            bn = norm(rest[1], torch.float64, device, training=turn % 3 != 1)
            with torch.no_grad():
                bn.weight[1] *= -1
                bn.weight[2] = 0
            node = NODES[name](**({} if name == "none" else {"store_v": turn % 2 == 0}))
            node = None if node is None else node.to(device, torch.float64)
            still = turn % 5 == 4
            z = ordered(current(rest if still else (T, *rest), torch.float64, device), turn % 2)
            shape = pooled_shape(pool, (T, *rest)) if before else (T, *rest)
            shortcut = None if connect_f is None else current(shape, torch.float64, device, seed=4).clamp(0, 2).round()
            options = {"connect_f": connect_f, "connect_before": connect_before, "pool_before": before}
            options |= {
                "return_sum": connection == "sum",
                "return_skip": connection == "skip",
                "T": T if still else None,
            }
            compare(both(z, bn, node, shortcut, pool, device, seed=turn, **options), 1e-9)
            tried += 1
    assert tried >= 18


@pools
@pytest.mark.parametrize("before", (False, True))
def test_single_precision(before, pool, device):
    """The same bits as the ops of the parts, also in half precision; y is not rounded to it in between."""
    bn, node, pool = norm(16, device=device), neuron.LIFNode().to(device), POOLS[pool]()
    with torch.no_grad():
        bn.weight[::3] *= -1
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        z = ordered(current((4, 2, 16, 9, 8), dtype, device), True)
        out = bn_neuron(z, bn, node, pool=pool, pool_before=before).out
        y = z.float() if before else z  # the numbers are exact in fp32
        y = bn_neuron(y, bn, None if before else node).out
        y = pool(y.flatten(0, 1)).unflatten(0, (4, 2))
        expected = node(y) if before else y
        # With different statistics of z and z.float(), which are sums in the same order, the bits would differ.
        assert torch.equal(out, expected.to(dtype)) and out.dtype == dtype and 0 < out.float().mean() < 1


def test_same_as_its_parts(device):
    """The kernels for a pooled output, which exist for IF, LIF and PLIF in single and half precision, give the bits of
    the op without pooling and of max pooling after one another; gradients differ by rounding."""
    tried = 0
    for connect_f, connect_before in CONNECTIONS.values():
        for T, shape in ((4, (2, 16, 6, 8)), (5, (2, 6, 7, 5)), (16, (1, 8, 4, 4)), (19, (2, 3, 5, 6))):
            tried += 1
            dtype = (torch.float32, torch.bfloat16, torch.float16)[tried % 3]
            node = NODES[("IF", "LIF", "PLIF", "LIF3")[tried % 4]](store_v=False, detach_reset=tried % 5 != 0).to(
                device
            )
            bn, pool = norm(shape[1], device=device, training=tried % 4 != 1), POOLS[("3x3", "2x2")[tried % 2]]()
            z = ordered(current((T, *shape), dtype, device, seed=tried), tried % 3).requires_grad_()
            shortcut = None
            if connect_f is not None:
                shortcut = current(z.shape, dtype, device, seed=4).clamp(0, 2).round().requires_grad_()
            options = {"connect_f": connect_f, "connect_before": connect_before}
            results = []
            for fused in (True, False):
                one = copy.deepcopy(bn)
                if fused:
                    out = bn_neuron(z, one, node, shortcut, pool=pool, **options).out
                else:
                    out = pool_images(pool, bn_neuron(z, one, node, shortcut, **options).out)
                leaves = [t for t in (z, shortcut, *one.parameters(), *node.parameters()) if t is not None]
                grads = torch.autograd.grad((out * current(out.shape, dtype, device, seed=7)).sum(), leaves)
                results.append([out, *one.buffers(), *grads])
            assert torch.equal(results[0][0], results[1][0])
            tolerance = 1e-4 if dtype == torch.float32 else 0.05
            for actual, expected in zip(*(result[1:] for result in results), strict=True):
                bound = tolerance * (1 + float(expected.abs().max()))
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=bound)


def test_one_op_each(monkeypatch):
    """Nothing but the named ops runs."""
    called = []

    class Ops(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    z, bn, node = current((4, 2, 8, 8, 8)), norm(8), neuron.IFNode(store_v=False)
    for before, expected in (
        (False, ["bn_take_statistics", "bn_neuron_pooled"]),
        (True, ["max_pool_statistics", "bn_neuron_forward"]),
    ):
        called.clear()
        with torch.no_grad(), Ops():
            bn_neuron(z, bn, node, pool=nn.MaxPool2d(2), pool_before=before)
        found = [name.split(".")[1] for name in called if name.startswith("sewsnn.")]
        assert sorted(found) == sorted(expected)


def test_what_is_kept():
    """z, a byte for each window, and numbers of the channels; before the neuron also the pooled z."""
    z, bn, node = current((4, 2, 8, 8, 8)).requires_grad_(), norm(8), neuron.LIFNode(store_v=False)
    for before, more in ((False, []), (True, [z.numel() // 4])):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            bn_neuron(z, bn, node, pool=nn.MaxPool2d(2), pool_before=before)
        large = [t for t in kept if t.numel() > 16]
        assert sorted(t.numel() for t in large if t.dtype == torch.float32) == sorted([z.numel(), *more])
        assert [t.numel() for t in large if t.dtype == torch.uint8] == [z.numel() // 4]


def test_other_poolings_run_as_the_module(device):
    """Windows that the op lacks, hooks, and derived classes."""

    class Own(nn.MaxPool2d):
        def forward(self, x):
            return 2 * super().forward(x)

    called = []
    watched = nn.MaxPool2d(2)
    watched.register_forward_hook(lambda *_: called.append(1))
    bn, node = norm(4, torch.float64, device), neuron.LIFNode().to(device, torch.float64)
    z = current((3, 2, 4, 7, 9), torch.float64, device)
    for pool in (
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(3, stride=(2, 1), padding=1),
        Own(2),
        watched,
    ):
        for before in (False, True):
            compare(both(z, bn, node, None, pool, device, pool_before=before), 1e-9)
    assert len(called) == 4


def test_layers(device):
    for before in (False, True):
        for bn in (True, False):
            node = neuron.IFNode()
            pool = nn.MaxPool2d(3, 2, 1)
            layer = BNNeuron(8, node, pool=pool, pool_before=before).to(device)
            if not bn:
                layer = layer.without_norm()
                assert isinstance(layer, NeuronConnection) and layer.pool is pool and layer.pool_before is before
            z = current((4, 2, 8, 8, 8), device=device)
            expected = bn_neuron(z, layer if bn else None, neuron.IFNode(), pool=pool, pool_before=before, fused=False)
            assert torch.equal(layer(z), expected.out)
            assert torch.equal(layer(z.flatten(0, 1), T=4, merged=True), layer(z).flatten(0, 1))
            assert "MaxPool2d" in repr(layer) and not any("pool" in name for name in layer.state_dict())
            assert torch.equal(copy.deepcopy(layer)(z), layer(z))
    assert "pool_before=True" in repr(layer) or not bn


@pytest.mark.parametrize("before", (False, True))
def test_compiled(before):
    """Inside torch.compile the pooling is torch's, and the result the same."""
    bn, node, pool = norm(4, training=False), neuron.LIFNode(store_v=False), nn.MaxPool2d(2)

    def run(z):
        return bn_neuron(z, bn, node, pool=pool, pool_before=before).out

    z = current((3, 2, 4, 6, 6))
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(z), run(z))
    with by_modules():
        assert torch.equal(run(z), bn_neuron(z, bn, node, pool=pool, pool_before=before).out)


def test_torch_func():
    bn, node, pool = norm(4, torch.float64, training=False), neuron.LIFNode(store_v=False), nn.MaxPool2d(2)
    z = current((3, 2, 4, 6, 6), torch.float64)
    for before in (False, True):
        loss = lambda z, before=before: bn_neuron(z, bn, node, pool=pool, pool_before=before).out.sum()  # noqa: E731
        leaf = z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(loss)(z), expected, rtol=1e-9, atol=1e-9)


def test_parts_without_a_gradient():
    """A frozen z, frozen parameters, and gradients of only one of them."""
    z, node, pool = current((4, 2, 6, 8, 8), torch.float64), neuron.ParametricLIFNode().double(), nn.MaxPool2d(2)
    bn = norm(6, torch.float64)
    for before in (False, True):
        for wanted in ("z", "weight", "bias", "w"):
            found = []
            for fused in (True, False):
                leaves = {"z": z.clone(), "weight": bn.weight, "bias": bn.bias, "w": node.w}
                for name, t in leaves.items():
                    t.requires_grad_(name == wanted)
                out = bn_neuron(leaves["z"], bn, node, pool=pool, pool_before=before, fused=fused).out
                found.append(
                    torch.autograd.grad((out * current(out.shape, out.dtype, seed=9)).sum(), leaves[wanted])[0]
                )
            torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("before", (False, True))
def test_numbers_that_are_not_finite(before):
    bn = norm(4)
    z = current((3, 2, 4, 6, 6))
    z[1, 0, 2, 3, 3] = float("nan")
    kept = [t.clone() for t in bn.buffers()]
    with pytest.raises(RuntimeError, match="not finite"):
        bn_neuron(z, bn, neuron.IFNode(), pool=nn.MaxPool2d(2), pool_before=before)
    assert all(torch.equal(a, b) for a, b in zip(kept, bn.buffers(), strict=True))


def test_errors():
    z, bn, node = current((3, 2, 4, 6, 6)), norm(4), neuron.IFNode()
    with pytest.raises(ValueError, match="pool is None"):
        bn_neuron(z, bn, node, pool_before=True)
    with pytest.raises(TypeError, match=r"pool must be an nn\.MaxPool2d"):
        bn_neuron(z, bn, node, pool=2)
    with pytest.raises(TypeError, match=r"pool must be an nn\.MaxPool2d"):
        BNNeuron(4, pool=nn.AvgPool2d(2))
    with pytest.raises(TypeError, match="return_indices"):
        bn_neuron(z, bn, node, pool=nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(ValueError, match=r"shape of out, \[3, 2, 4, 3, 3\]"):
        bn_neuron(z, bn, node, z, connect_f="ADD", pool=nn.MaxPool2d(2), pool_before=True)
    for before in (False, True):
        with pytest.raises(ValueError, match="no window"):
            bn_neuron(z[..., :1], bn, node, pool=nn.MaxPool2d(2), pool_before=before)
        with pytest.raises(ValueError, match="channels"):
            bn_neuron(z[:, :, :2], bn, node, pool=nn.MaxPool2d(2), pool_before=before)


@pytest.mark.parametrize("name", ("sew_7b_net", "spiking_cifar10_net", "plain_7b_net"))
def test_event_networks_use_it(name, monkeypatch):
    """The last op of each stage pools its output, with the numbers of the modules."""
    from sewsnn.layers import fused

    calls = []
    real = fused.bn_neuron_pooled
    monkeypatch.setattr(fused, "bn_neuron_pooled", lambda *a, **kw: calls.append(1) or real(*a, **kw))
    settings = {"widths": (8, 12), "blocks": (1, 2), "num_classes": 3, "T": 4}
    torch.manual_seed(0)
    net = sewsnn.models.create_model(name, **settings).double()
    apart = sewsnn.models.create_model(name, **settings, fused=False).double()
    apart.load_state_dict(net.state_dict())
    x = torch.rand(4, 2, net.layer1.conv.in_channels, 16, 16, dtype=torch.float64)
    results = []
    for model in (net, apart):
        out = model(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*model.parameters()]), *model.buffers()])
    assert len(calls) == 2
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    calls.clear()
    net.layer1.pool.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(net(x), apart(x), rtol=1e-9, atol=1e-9)
    assert len(calls) == 1


def test_images_only():
    """Pooling is over the space of images; anything else is an error, also without the op."""
    for z, bn, T in (
        (current((2, 4, 4, 6, 6)), nn.BatchNorm3d(4), 3),
        (current((3, 2, 4, 4, 6, 6)), nn.BatchNorm3d(4), None),
        (current((3, 2, 4, 6)), nn.BatchNorm1d(4), None),
        (current((2, 4, 6)), nn.BatchNorm1d(4), 3),
    ):
        for before in (False, True):
            for fused in (False, True):
                with pytest.raises(ValueError, match="with pool, z_seq must be"):
                    bn_neuron(z, bn, neuron.IFNode(), T=T, pool=nn.MaxPool2d(2), pool_before=before, fused=fused)


@pytest.mark.parametrize("before", (False, True))
def test_several_gradients_at_once(before):
    """``is_grads_batched``, in single precision and with a learnt parameter and a shortcut."""
    bn, node, pool = norm(4), neuron.ParametricLIFNode(store_v=False), nn.MaxPool2d(2)
    for dtype, connect_f in ((torch.float32, None), (torch.float32, "ADD"), (torch.bfloat16, "IAND")):
        z = current((3, 2, 4, 6, 6), dtype).requires_grad_()
        size = (3, 2, 4, 3, 3) if before else z.shape
        shortcut = None if connect_f is None else current(size, dtype, seed=2).clamp(0, 1).round().requires_grad_()
        out = bn_neuron(z, bn, node, shortcut, connect_f=connect_f, pool=pool, pool_before=before).out
        leaves = [t for t in (z, shortcut, bn.weight, node.w) if t is not None]
        grads = current((3, *out.shape), dtype, seed=5)
        together = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, retain_graph=True)
        for i, grad in enumerate(grads):
            for one, all_of_them in zip(
                torch.autograd.grad(out, leaves, grad, retain_graph=True), together, strict=True
            ):
                assert torch.equal(one, all_of_them[i])


def test_forward_mode():
    """Max pooling has a forward-mode derivative in torch, so the module runs; neurons have none."""
    bn, pool = norm(4, torch.float64, training=False), nn.MaxPool2d(2)
    z = current((3, 2, 4, 6, 6), torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, torch.ones_like(z))
        for before in (False, True):
            found = [
                bn_neuron(dual, bn, None, pool=pool, pool_before=before, fused=fused).out for fused in (True, False)
            ]
            tangents = [torch.autograd.forward_ad.unpack_dual(out).tangent for out in found]
            torch.testing.assert_close(*tangents, rtol=1e-9, atol=1e-9)


def test_calls_of_the_module():
    """A pooling with hooks, and one of a derived class, is called once for each call, with images; a shortcut of
    another shape is still an error."""
    seen = []

    class Own(nn.MaxPool2d):
        def forward(self, x):
            seen.append((x.device.type, tuple(x.shape)))
            return super().forward(x)

    watched = nn.MaxPool2d(2)
    watched.register_forward_pre_hook(lambda _, args: seen.append((args[0].device.type, tuple(args[0].shape))))
    z, shortcut = current((3, 2, 4, 6, 6)), torch.zeros(3, 2, 4, 3, 3)
    options = {"connect_f": "ADD", "pool_before": True}
    for pool in (Own(2), watched):
        bn_neuron(z, norm(4), neuron.IFNode(), shortcut, pool=pool, **options)
        assert seen == [("cpu", (6, 4, 6, 6))]
        seen.clear()
        with pytest.raises(ValueError, match="shape of out"):
            bn_neuron(z, norm(4), neuron.IFNode(), shortcut[..., :1], pool=pool, **options)
        seen.clear()


def test_infinity_where_the_weight_is_zero():
    """BN of an infinity is NaN whatever the weight, and so is the maximum."""
    bn = norm(3, torch.float64, training=False)
    with torch.no_grad():
        bn.weight[1] = 0
    for infinity in (float("inf"), float("-inf")):
        z = current((2, 1, 3, 6, 6), torch.float64)
        z[..., 1, 3] = infinity
        found = [
            bn_neuron(z, bn, None, pool=nn.MaxPool2d(2), pool_before=True, fused=fused).out for fused in (True, False)
        ]
        torch.testing.assert_close(*found, equal_nan=True, rtol=1e-9, atol=1e-9)
        assert found[0].isnan().any()


def test_the_sum_is_not_pooled():
    """``return_sum`` with pooling after the neuron returns u of the full size, with a neuron and without."""
    z, shortcut = (current((3, 2, 4, 6, 6), seed=seed) for seed in (0, 1))
    options = {"connect_f": "ADD", "connect_before": True, "return_sum": True, "pool": nn.MaxPool2d(2)}
    for node in (None, neuron.IFNode()):
        for fused in (True, False):
            output = bn_neuron(z, norm(4), node, shortcut, **options, fused=fused)
            assert output.out.shape == (3, 2, 4, 3, 3) and output.skip.shape == z.shape
            before = bn_neuron(z, norm(4), node, shortcut[..., :3, :3], **options, pool_before=True, fused=fused)
            assert before.out.shape == before.skip.shape == (3, 2, 4, 3, 3)


@pytest.mark.parametrize("before", (False, True))
def test_an_error_changes_no_statistics(before):
    bn = norm(4)
    kept = [t.clone() for t in bn.buffers()]
    z, node, pool = current((3, 2, 4, 6, 6)), neuron.IFNode(), nn.MaxPool2d(2)
    small = torch.zeros(3, 2, 4, 3, 3) if before else torch.zeros_like(z)
    for wrong in (
        {"shortcut": small.to_sparse(), "connect_f": "ADD"},
        {"shortcut": small.double(), "connect_f": "ADD"},
        {"pool": nn.MaxPool2d(9)},
        {"z": z[:, :0]},
        {"z": z[:, :, :, :0]},
    ):
        given = {"shortcut": None, "pool": pool, "z": z} | wrong
        with pytest.raises((TypeError, ValueError)):
            bn_neuron(given.pop("z"), bn, node, given.pop("shortcut"), pool_before=before, **given)
        assert all(torch.equal(a, b) for a, b in zip(kept, bn.buffers(), strict=True)), wrong


def test_layers_of_old_pickles():
    for layer in (BNNeuron(4), BNNeuron(4).without_norm()):
        state = {name: value for name, value in layer.__dict__.items() if name not in ("pool", "pool_before")}
        old = type(layer).__new__(type(layer))
        old.__setstate__(state)
        assert old.pool is None and old.pool_before is False
        assert torch.equal(old(current((2, 1, 4, 3, 3))), layer(current((2, 1, 4, 3, 3)))) and repr(old)


def test_networks_with_another_pooling():
    """A module that somebody has put in the place of a stage's pooling runs."""
    settings = {"widths": (8, 12), "blocks": (1, 1), "num_classes": 3, "T": 2}
    x = torch.rand(2, 1, 2, 16, 16)
    for other in (nn.AvgPool2d(2), nn.Sequential(nn.MaxPool2d(2)), nn.AdaptiveMaxPool2d(8)):
        results = []
        for fused in (True, False):
            torch.manual_seed(0)
            net = sewsnn.models.create_model("sew_7b_net", **settings, fused=fused).eval()
            net.layer1.pool = other
            results.append(net(x))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("before", (False, True))
def test_a_change_of_running_statistics_is_noticed(before):
    """A graph that has saved the running statistics cannot be differentiated after a training step has changed them."""
    bn, factor = norm(4), torch.ones(4, requires_grad=True)
    saved = (bn.running_var * factor).sum()
    bn_neuron(current((3, 2, 4, 6, 6)), bn, neuron.IFNode(), pool=nn.MaxPool2d(2), pool_before=before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
