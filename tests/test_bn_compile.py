"""torch.compile, torch.export and opcheck of the fused op."""

import copy

import pytest
import torch
from bn_cases import norm
from cases import current

from sewsnn import models, neuron
from sewsnn.layers import BNNeuron, bn_neuron
from sewsnn.ops.options import NO_NEURON, numbers_of


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


def values(function, module, *inputs):
    """Output, gradients and buffers of one call."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    module.zero_grad()
    out = function(*inputs)
    (out * current(out.shape, out.dtype, out.device, seed=3)).sum().backward()
    grads = [t.grad.clone() for t in (*inputs, *module.parameters()) if t.grad is not None]
    return [out.detach(), *grads, *(b.clone() for b in module.buffers())]


def assert_compiles(module, *inputs, **options):
    """Runs twice, because the running statistics change."""
    compiled_module = copy.deepcopy(module)
    compiled = torch.compile(compiled_module, fullgraph=True, backend="aot_eager", **options)
    for _ in range(2):
        expected, actual = values(module, module, *inputs), values(compiled, compiled_module, *inputs)
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    return compiled_module


@pytest.mark.parametrize(
    "connect_f, before, momentum, training",
    [(None, False, 0.1, True), ("ADD", True, 0.1, True), ("AND", False, None, True), ("IAND", False, 0.1, False)],
)
def test_layer(connect_f, before, momentum, training, device):
    """The whole layer in one graph: the same bits as eager, in outputs, gradients, running statistics and v."""
    node = neuron.ParametricLIFNode()
    layer = BNNeuron(4, node, connect_f, momentum=momentum, connect_before=before).to(device).train(training)
    z, shortcut = (current((20, 2, 4, 3, 5), device=device, seed=s) for s in range(2))
    compiled = assert_compiles(layer, z, *([] if connect_f is None else [shortcut]))
    assert torch.equal(compiled.neuron.v, layer.neuron.v)
    assert compiled.num_batches_tracked == (2 if training else 0)


def test_any_batch(device):
    """One graph serves every N."""
    layer = BNNeuron(4, neuron.LIFNode()).to(device)
    module = copy.deepcopy(layer)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3, 5):
        z = current((3, n, 4, 3, 5), device=device)
        for a, b in zip(values(compiled, module, z), values(layer, layer, z), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_network(device):
    """A residual network, whose blocks have two readers each: gradients of both meet in the graph as in eager."""
    torch.manual_seed(0)
    net = (
        models.create_model("sew_resnet", blocks=[2], widths=[4], num_classes=3, stem="small", T=2).to(device).double()
    )
    module = copy.deepcopy(net)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = current((2, 3, 6, 6), torch.float64, device)
    for a, b in zip(values(compiled, module, x), values(net, net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # convolutions may sum in another order


def test_export(device):
    """In evaluation mode the graph contains the op and gives the results of eager mode."""
    net = models.create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, stem="small", connect_f="AND")
    net = net.to(device).eval()
    x = current((2, 3, 6, 6), device=device)
    program = torch.export.export(net, (x,))
    assert sum("sewsnn.bn_neuron_forward" in str(node.target) for node in program.graph.nodes) == 3
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=0)


CASES = ((0, 0, True), (1, 1, True), (2, 2, False), (3, NO_NEURON, True), (4, 2, True))  # connection, neuron, training


@pytest.mark.parametrize(
    "T, dtype, cases",
    [(0, torch.float32, CASES), (3, torch.bfloat16, CASES[3:]), (3, torch.float64, CASES[2:3])],
    ids=str,
)
def test_opcheck(T, dtype, cases, device):
    """torch's own checks of schemas, fake kernels, autograd's registration and (forward) tracing."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    z = current((2, 4, 3) if T else (20, 2, 4, 3), dtype, device)
    shortcut = current((T, *z.shape) if T else z.shape, dtype, device, seed=1)
    statistics, sums = torch.ones(2, 4, dtype=state, device=device), torch.ones(2, 4, dtype=state, device=device)
    weight, bias = (current((4,), state, device, seed=s) for s in (2, 3))
    leak = torch.tensor(0.4, dtype=state, device=device)
    ops, untraced = torch.ops.sewsnn, ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.bn_statistics.default, (z, T, True))
    torch.library.opcheck(ops.bn_update.default, (statistics, 0.1, 6.0, weight.clone(), bias.clone()))
    for connect, kind, training in cases:
        tensors = [z, shortcut if connect else None, statistics, weight, bias, leak if kind == 2 else None]
        options = (1e-5, connect, T, kind, 2.5, True, 1.0, 0.0, 0, 2.0, True)
        leaves = [t if t is None else t.clone().requires_grad_(t is not statistics) for t in tensors]
        pack = connect in (0, 4) and kind != NO_NEURON
        torch.library.opcheck(ops.bn_neuron_forward.default, (*leaves, *options, 1, True, pack, training))
        out, _, kept, _ = ops.bn_neuron_forward(*tensors, *options, 0, True, False, training)
        running = [*statistics.clone(), torch.tensor(3, device=device)]
        numbers = (*numbers_of(options), 0.1, 1, True, pack)
        train = (z, tensors[1], *tensors[3:], *running, numbers)
        torch.library.opcheck(ops.bn_neuron_train.default, train, test_utils=untraced)
        if connect == 1:  # backward of ADD is that of no connection
            tensors[1], options = None, (1e-5, 0, *options[2:])
        reduce = (out, out, *tensors, kept, *options, kind == 2)
        torch.library.opcheck(ops.bn_neuron_reduce.default, reduce, test_utils=untraced)
        both = (out, out, *tensors, kept, (*numbers_of(options), training, connect in (2, 3, 4), kind == 2))
        # Not test_schema: the gradients of weight and bias are rows of one tensor, as those of torch's unsafe_split.
        torch.library.opcheck(ops.bn_neuron_backward.default, both, test_utils=untraced[1:])
        apply = (out, *tensors, kept, sums if training else None, 30.0, *options, connect in (2, 3, 4))
        torch.library.opcheck(ops.bn_neuron_apply.default, apply, test_utils=untraced)


def test_compiled_without_gradients(device):
    bn, node = norm(4, device=device, training=False), neuron.LIFNode(store_v=False)
    compiled = torch.compile(
        lambda z: bn_neuron(z, bn, node, return_skip=True)[:2], fullgraph=True, backend="aot_eager"
    )
    z = current((3, 2, 4, 3, 5), device=device)
    with torch.no_grad():
        out, skip = compiled(z)
        assert torch.equal(out, bn_neuron(z, bn, node).out) and torch.equal(out, skip)
