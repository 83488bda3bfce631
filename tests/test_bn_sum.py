"""The membrane shortcut, u = BN(z) + S and s = SN(u) as two results of one op; merged batches ``[T * N, C, ...]``."""

import copy

import pytest
import torch
from bn_cases import NODES, norm
from cases import current
from torch import nn

import sewsnn
from sewsnn import functional, neuron
from sewsnn.layers import BNNeuron, NeuronConnection, bn_neuron
from sewsnn.ops import bn as native
from sewsnn.ops import reference
from sewsnn.ops.options import SUM, Options

SPIKING = [name for name in NODES if name != "none"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SUMMED = {"connect_f": "ADD", "connect_before": True, "return_sum": True}


def operands(shape, dtype, channels_last=False):
    z, u = (current(shape, dtype, seed=seed, scale=1.5) for seed in (0, 1))
    if channels_last:
        z, u = (t.transpose(2, -1).contiguous().transpose(2, -1) for t in (z, u))
    return z.requires_grad_(), u.requires_grad_()


def gradients(out, u, leaves, uses=("out", "u")):
    terms = {"out": (out, 4), "u": (u, 5)}
    loss = sum((t * current(t.shape, t.dtype, seed=seed)).sum() for t, seed in (terms[use] for use in uses))
    return torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize("uses", [("out", "u"), ("out",), ("u",)], ids="-".join)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SPIKING)
def test_like_the_modules(name, training, uses):
    """In double: results, states and all gradients, for each use of the results, T on both sides of 16, any layout."""
    for T, rest in ((1, (3, 8)), (4, (2, 8, 5, 5)), (17, (2, 3, 7)), (33, (1, 64, 3, 3))):
        for channels_last in (False, True):
            bn, node = norm(rest[1], torch.float64, training=training), NODES[name]().double()
            z, shortcut = operands((T, *rest), torch.float64, channels_last and len(rest) > 2)
            results = []
            for fused in (True, False):
                one_bn, one = copy.deepcopy(bn), copy.deepcopy(node)
                if len(rest) < 4:
                    one_bn.__class__ = nn.BatchNorm1d
                output = bn_neuron(z, one_bn, one, shortcut, **SUMMED, fused=fused)
                leaves = [z, shortcut, *one_bn.parameters(), *one.parameters()]
                found = gradients(output.out, output.skip, leaves, uses)
                results.append([output.out, output.skip, one.v, *one_bn.buffers(), *found])
            for actual, expected in zip(*results, strict=True):
                if expected is None or actual is None:  # the modules skip what gets no gradient
                    assert actual is None or not actual.any()
                    continue
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_once(dtype):
    """u is the sum rounded to the dtype of z, and the neuron runs on the rounded u: s can be computed from u."""
    bn, node = norm(16, reference.state_dtype(dtype)), neuron.LIFNode()
    z, shortcut = operands((4, 2, 16, 9, 9), dtype)
    out, u, v, bits = bn_neuron(z, bn, node, shortcut, **SUMMED)
    assert u.dtype == out.dtype == dtype and bits is None
    again, v_again = functional.lif_multistep(u.detach())
    assert torch.equal(out, again) and torch.equal(v, v_again)
    exact = bn.double().train()(z.detach().double().flatten(0, 1)).unflatten(0, z.shape[:2]) + shortcut.double()
    rounding, before = torch.finfo(dtype).eps, 1e-14 if dtype == torch.float64 else 1e-6
    assert ((u.double() - exact).abs() <= rounding * exact.abs() + before).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_every_dtype(dtype):
    """Beside the gradients of the same spikes in double."""
    z, shortcut = operands((5, 2, 8, 6, 6), dtype)
    bn, node = norm(8, reference.state_dtype(dtype)), neuron.LIFNode()
    out, u, *_ = bn_neuron(z, bn, node, shortcut, **SUMMED)
    found = gradients(out, u, [z, shortcut, bn.weight, bn.bias])
    z2, shortcut2, bn2 = (
        z.detach().double().requires_grad_(),
        shortcut.detach().double().requires_grad_(),
        norm(8, torch.float64),
    )
    y = bn2(z2.flatten(0, 1)).unflatten(0, z.shape[:2]) + shortcut2
    y = y + (u.double() - y).detach()
    expected = gradients(neuron.LIFNode()(y), y, [z2, shortcut2, bn2.weight, bn2.bias])
    eps = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.double() - wanted).abs().max() <= eps * wanted.abs().max()


def test_layers():
    layer = BNNeuron(8, neuron.LIFNode(), **SUMMED)
    z, shortcut = operands((4, 2, 8, 5, 5), torch.float32)
    out, u = layer(z, shortcut)
    assert out.shape == u.shape == z.shape and "return_sum=True" in repr(layer) and layer.return_sum
    torch.testing.assert_close(layer.without_norm()(u, torch.zeros_like(u))[0], out)
    assert isinstance(layer.without_norm(), NeuronConnection)
    layer.return_sum = False
    torch.testing.assert_close(layer(z, shortcut), out)
    out, u = NeuronConnection(None, **SUMMED)(z, shortcut)
    assert torch.equal(out, u) and torch.equal(u, z + shortcut)
    with torch.no_grad():
        out, u = BNNeuron(8, neuron.LIFNode(), **SUMMED).eval()(z, shortcut)
    assert not u.requires_grad
    for wrong in ({"connect_f": "ADD"}, {"connect_f": None}, {"connect_f": "AND"}):
        with pytest.raises(ValueError, match="return_sum"):
            BNNeuron(8, return_sum=True, **wrong)
    with pytest.raises(ValueError, match="choose one"):
        bn_neuron(z, layer, layer.neuron, shortcut, **SUMMED, return_skip=True)


def test_compiled():
    """torch.compile keeps the layer in one graph; values and gradients are the same."""
    layer = BNNeuron(8, neuron.LIFNode(), **SUMMED)
    z, shortcut = operands((4, 2, 8, 5, 5), torch.float32)
    results = []
    for call in (torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager"), layer):
        out, u = call(z, shortcut)
        results.append([out, u, *gradients(out, u, [z, shortcut])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_ops_check_their_arguments():
    bn, node = norm(8), neuron.LIFNode()
    z, shortcut = (t.detach() for t in operands((4, 2, 8, 5, 5), torch.float32))
    statistics, _ = native.moments(z, 0)
    spec, tensors = node.spec(), (z, shortcut, statistics, bn.weight.detach(), bn.bias.detach(), None)
    options = Options(1e-5, SUM, 0, spec)
    torch.library.opcheck(
        torch.ops.sewsnn.bn_neuron_sum.default,
        (*tensors, *options.arguments, 1, True, True, *options.tail),
        test_utils=("test_schema", "test_faketensor"),
    )
    for op, arguments, words in (
        ("bn_neuron_forward", (*options.arguments, 0, False, False, False), "call bn_neuron_sum"),
        ("bn_neuron_sum", (*Options(1e-5, 4, 0, spec).arguments, 0, False, False), "needs the connection 5"),
        ("bn_neuron_sum", (*Options(1e-5, SUM, 0, None).arguments, 0, False, False), "only with a neuron"),
    ):
        with pytest.raises(RuntimeError, match=words):
            getattr(torch.ops.sewsnn, op)(*tensors, *arguments)


# ---- merged batches


@pytest.mark.parametrize("channels_last", [False, True])
def test_merged_neurons(channels_last):
    """A node and the functions take ``[T * N, ...]`` with T: the same bits, in the memory of a batch of its own."""
    x = current((4, 3, 8, 6, 6))
    flat = x.flatten(0, 1)
    flat = (flat.contiguous(memory_format=torch.channels_last) if channels_last else flat).requires_grad_()
    for node in (
        neuron.LIFNode(),
        neuron.CUBALIFNode(),
        neuron.LIFNode(learn_tau=True, channels=8),
        neuron.IFNode(backend="torch"),
    ):
        expected = copy.deepcopy(node)
        wanted = expected(x.requires_grad_())
        s = node(flat, T=4)
        assert torch.equal(s, wanted.flatten(0, 1)) and torch.equal(node.v, expected.v)
        assert s.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        weights = current(s.shape, seed=2)
        (found,) = torch.autograd.grad((s * weights).sum(), [flat])
        (grad,) = torch.autograd.grad((wanted * weights.unflatten(0, (4, 3))).sum(), [x])
        torch.testing.assert_close(found, grad.flatten(0, 1))
    for function, arguments in (
        (functional.if_multistep, ()),
        (functional.lif_multistep, ()),
        (functional.plif_multistep, (torch.tensor(0.3),)),
    ):
        expected = function(x, *arguments, store_v_seq=True)
        for actual, wanted in zip(function(flat, *arguments, store_v_seq=True, T=4), expected, strict=True):
            assert torch.equal(actual, wanted.flatten(0, 1))


def test_merged_layers():
    layer = BNNeuron(8, neuron.LIFNode(), connect_f="ADD")
    z, shortcut = operands((4, 3, 8, 6, 6), torch.float32)
    wanted = copy.deepcopy(layer)(z, shortcut)
    assert torch.equal(layer(z.flatten(0, 1), shortcut.flatten(0, 1), T=4, merged=True), wanted.flatten(0, 1))
    bn, node = nn.BatchNorm2d(8), neuron.LIFNode()
    for options in (SUMMED, {"connect_f": "AND", "return_skip": True}, {"connect_f": "ADD", "fused": False}):
        expected = bn_neuron(z, copy.deepcopy(bn), node, shortcut, **options)
        flat = bn_neuron(z.flatten(0, 1), copy.deepcopy(bn), node, shortcut.flatten(0, 1), T=4, merged=True, **options)
        assert torch.equal(flat.out, expected.out.flatten(0, 1)) and flat.v.shape == expected.v.shape
        assert expected.skip is None or torch.equal(flat.skip, expected.skip.flatten(0, 1))
    out = bn_neuron(z.flatten(0, 1), bn, node, T=4, merged=True).out
    assert out.untyped_storage().nbytes() == out.numel() * 4  # a view of the op's result


def test_wrong_merged_batches():
    node, x = neuron.LIFNode(), torch.rand(6, 8)
    for T, error, words in (
        (4, ValueError, r"x must be \[T \* N, ...\] with T = 4, got shape \[6, 8\]"),
        (0, ValueError, "at least 1"),
        (2.0, TypeError, "number of time-steps"),
        (True, TypeError, "number of time-steps"),
    ):
        with pytest.raises(error, match=words):
            node(x, T=T)
    with pytest.raises(TypeError, match="number of time-steps"):
        bn_neuron(x, nn.BatchNorm1d(8), node, merged=True)
    with pytest.raises(ValueError, match="step_mode is 's'"):
        neuron.LIFNode(step_mode="s")(x, T=2)
    with pytest.raises(TypeError, match="x_seq must be a tensor"):
        sewsnn.functional.if_multistep([1.0], T=1)
