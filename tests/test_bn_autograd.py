"""Autograd of the fused op: which gradients exist, what it saves for backward, and what it refuses."""

import pytest
import torch
from bn_cases import CONNECTIONS, Case, by_op, compare, loss_of, norm
from cases import EPS, current
from torch.utils.checkpoint import checkpoint

from sewsnn import neuron
from sewsnn.layers import BNNeuron, bn_neuron

SHAPE = (5, 2, 4, 3, 5)


def call(z, shortcut=None, connection="none", node=None, bn=None, **options):
    connect_f, before = CONNECTIONS[connection]
    bn = norm(z.shape[2], device=z.device) if bn is None else bn
    node = neuron.LIFNode() if node is None else node
    return bn_neuron(z, bn, node, shortcut, connect_f=connect_f, connect_before=before, **options)


def pair(device, connection):
    """z and, for a connection, the shortcut."""
    z = current(SHAPE, device=device).requires_grad_()
    return z, None if connection == "none" else current(SHAPE, device=device, seed=1).requires_grad_()


@pytest.mark.parametrize("T", [5, 33])
@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_kept(training, connection, T, device):
    """It saves z, [C] numbers, the shortcut (not for ADD), and for T > 16 every 16th potential."""
    z = current((T, *SHAPE[1:]), device=device).requires_grad_()
    shortcut = None if connection == "none" else current(z.shape, device=device, seed=1).requires_grad_()
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call(z, shortcut, connection, bn=norm(4, device=device, training=training), return_skip=True)
    kept.pop(0, None)  # empty tensors
    large = [z] if connection in ("none", "ADD") else [z, shortcut]
    assert all(t.untyped_storage().data_ptr() in kept for t in large)
    checkpoints = (T - 1) // 16 * z[0].nbytes
    channels = 4 * 4 * z.element_size()  # mean, var, weight and bias of 4 channels
    assert sum(kept.values()) == sum(t.nbytes for t in large) + checkpoints + channels
    assert output.out.untyped_storage().data_ptr() not in kept


@pytest.mark.parametrize("return_skip", [False, True], ids=["one reader", "two readers"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_gradients_of_any_subset(connection, training, return_skip, device):
    """Each gradient alone, and all gradients but one, have the same bits as all together; no other tensor gets one."""
    names = ["z", "weight", "bias", "w", *(["shortcut"] if connection != "none" else [])]

    def grads(wanted):
        z, shortcut = pair(device, connection)
        bn, node = norm(4, device=device, training=training), neuron.ParametricLIFNode().to(device)
        inputs = {"z": z, "shortcut": shortcut, "weight": bn.weight, "bias": bn.bias, "w": node.w}
        for name in names:
            inputs[name].requires_grad_(name in wanted)
        output = call(z, shortcut, connection, node, bn, return_skip=return_skip)
        loss_of(output.out, output.skip).backward()
        return {name: inputs[name].grad for name in names}

    everything = grads(names)
    for wanted in [[name] for name in names] + [[n for n in names if n != name] for name in names]:
        for name, grad in grads(wanted).items():
            assert (grad is None) == (name not in wanted)
            assert grad is None or torch.equal(grad, everything[name]), (name, wanted)


def test_no_gradient_is_wanted(device):
    z = current(SHAPE, device=device)
    bn = norm(4, device=device).requires_grad_(False)
    assert not call(z, bn=bn).out.requires_grad
    with torch.no_grad():
        assert not call(z.clone().requires_grad_()).out.requires_grad
    with torch.inference_mode():
        assert call(z).out.is_inference()
    assert bn.num_batches_tracked == 1
    call(z.requires_grad_()).out.sum().backward()  # the call in inference_mode has no effect on later calls


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_gradient_of_one_number(connection, device):
    """Gradients of sum() and of expanded tensors have strides of 0."""
    gradients = [lambda o: torch.ones_like(o), lambda o: o.new_tensor(1.0).expand_as(o)]
    results = []
    for gradient in gradients:
        z, shortcut = pair(device, connection)
        out = call(z, shortcut, connection).out
        wanted = [z] if shortcut is None else [z, shortcut]
        results.append(torch.autograd.grad(out, wanted, gradient(out)))
    for dense, expanded in zip(*results, strict=True):
        assert torch.equal(dense, expanded) and expanded.abs().sum() > 0


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("T", [None, 3])
def test_two_readers(connection, T, device):
    """``skip`` shares out's memory. Backward adds the gradients of both; either may be missing."""
    z = current((2, 4, 3, 5) if T else SHAPE, device=device)
    compare(Case(z, connection, T=T, return_skip=True))
    one = by_op(Case(z, connection, T=T)).grads

    for reader in ("out", "skip"):
        case = Case(z, connection, T=T)
        x, s = (None if t is None else t.detach().requires_grad_() for t in (case.z, case.shortcut))
        connect_f, before = CONNECTIONS[connection]
        output = bn_neuron(
            x, case.bn(), case.sn(), s, connect_f=connect_f, connect_before=before, T=T, return_skip=True
        )
        assert output.skip.data_ptr() == output.out.data_ptr() and torch.equal(output.skip, output.out)
        read = getattr(output, reader)
        (read * current(read.shape, device=device, mean=0.1, seed=1)).sum(dtype=torch.float64).backward()
        assert torch.equal(x.grad, one["z"])


class Nothing(torch.autograd.Function):
    """A function that reads x but returns no gradient for it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_neither_reader_has_a_gradient(device):
    for connection in CONNECTIONS:
        z, shortcut = pair(device, connection)
        output = call(z, shortcut, connection, return_skip=True)
        (Nothing.apply(output.out) + Nothing.apply(output.skip)).sum().backward()
        assert z.grad is None and (shortcut is None or shortcut.grad is None)


@pytest.mark.parametrize("changed", ["z", "shortcut", "weight", "bias"])
def test_what_is_kept_must_not_change(changed, device):
    z, shortcut = (t * 1 for t in pair(device, "AND"))
    bn = norm(4, device=device)
    out = call(z, shortcut, "AND", bn=bn).out
    with torch.no_grad():
        {"z": z, "shortcut": shortcut, "weight": bn.weight, "bias": bn.bias}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_is_not_kept_may_change(device):
    """Cases: the output, ADD's shortcut, and the running statistics of a frozen norm."""
    results = []
    for change in (False, True):
        z, shortcut = pair(device, "ADD")
        bn, given = norm(4, device=device, training=False), shortcut * 1
        out = call(z, given, "ADD", bn=bn).out
        if change:
            out.mul_(3)
            with torch.no_grad():
                given.zero_()
                bn.running_var.fill_(7)
        else:
            out = out * 3
        out.square().sum().backward()
        results.append((z.grad, shortcut.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_two_readers_see_no_change(device):
    """out and skip share memory: an in-place change of one raises an error where it would falsify a gradient."""
    z, _ = pair(device, "none")
    output = call(z, return_skip=True)
    with pytest.raises(RuntimeError, match="modified inplace"):
        output.skip.mul_(2)
    output.out.mul_(2)
    with pytest.raises(RuntimeError, match="modified inplace"):
        output.skip.sum().backward()


def test_backward_again(device):
    """With retain_graph a second backward gives the same; a freed graph raises torch's error; gradients accumulate."""
    z, shortcut = pair(device, "IAND")
    out = call(z, shortcut, "IAND").out
    out.sum().backward(retain_graph=True)
    once = z.grad.clone(), shortcut.grad.clone()
    out.sum().backward()
    assert torch.equal(z.grad, 2 * once[0]) and torch.equal(shortcut.grad, 2 * once[1])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_no_second_derivative(connection, training, device):
    """Second derivatives raise an error instead of returning zeros."""
    z, shortcut = pair(device, connection)
    out = call(z, shortcut, connection, bn=norm(4, device=device, training=training)).out
    (grad,) = torch.autograd.grad(out.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant, device):
    torch.manual_seed(0)
    plain, again = BNNeuron(4, neuron.ParametricLIFNode(), "AND"), BNNeuron(4, neuron.ParametricLIFNode(), "AND")
    results = []
    for layer in (plain, again):
        layer.to(device)
        z, shortcut = pair(device, "AND")
        out = layer(z, shortcut) if layer is plain else checkpoint(layer, z, shortcut, use_reentrant=use_reentrant)
        (out * current(SHAPE, device=device, seed=2)).sum().backward()
        results.append([z.grad, shortcut.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scaled_gradients(dtype, device):
    """Backward is linear and powers of 2 are exact, so GradScaler's factor scales every gradient exactly."""
    results = []
    for factor in (1.0, 2.0**10):
        z, shortcut = (t.detach().to(dtype).requires_grad_() for t in pair(device, "AND"))
        bn, node = norm(4, device=device), neuron.ParametricLIFNode().to(device)
        out = call(z, shortcut, "AND", node, bn).out
        weights = current(SHAPE, dtype, device, scale=0.5, mean=0.75, seed=2)
        grads = torch.autograd.grad(out, [z, shortcut, bn.weight, bn.bias, node.w], weights * factor)
        results.append([g / factor for g in grads])
    for a, b in zip(*results, strict=True):
        # except for numbers below the normal range of float16: the factor moves them into it
        atol = torch.finfo(torch.float16).tiny * EPS[torch.float16] if dtype == torch.float16 else 0
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_torch_func_runs_the_modules(device):
    """vmap of a frozen layer over batches, forward and gradient."""
    layer = BNNeuron(4, neuron.IFNode()).to(device).double().eval()
    z = current((3, *SHAPE), torch.float64, device)
    out = torch.func.vmap(layer)(z)
    assert torch.equal(out, torch.stack([layer(x) for x in z]))
    grad = torch.func.grad(lambda x: layer(x).sum())(z[0])
    x = z[0].clone().requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(grad, x.grad, rtol=64 * EPS[z.dtype], atol=64 * EPS[z.dtype])


def test_forward_mode_is_not_dropped(device):
    """Forward mode works for a norm without a neuron; with a neuron it raises an error."""
    z, bn = current(SHAPE, device=device), norm(4, device=device, training=False).requires_grad_(False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, torch.ones_like(z))
        tangent = torch.autograd.forward_ad.unpack_dual(bn_neuron(dual, bn, None).out).tangent
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        torch.testing.assert_close(tangent, scale.view(-1, 1, 1).expand_as(z))
        with pytest.raises(NotImplementedError, match="jvp"):
            bn_neuron(dual, bn, neuron.IFNode())
