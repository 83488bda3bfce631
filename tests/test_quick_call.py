"""The quick path of bn_neuron in training (layers/quick.py) gives what the general path gives, or leaves the call to
it."""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sewsnn import layers, neuron, surrogate
from sewsnn.layers import quick
from sewsnn.ops.options import Options, from_numbers, numbers_of
from sewsnn.ops.spec import NeuronSpec

NUMBERS = Options(1e-5, 0, 0, NeuronSpec("IF", surrogate.ATan())).numbers


def inputs(device, dtype=torch.float32):
    torch.manual_seed(0)
    z = torch.randn(4, 2, 8, 3, 3, device=device, dtype=dtype, requires_grad=True)
    return z, torch.randint(0, 3, z.shape, device=device).to(dtype).requires_grad_()


def block(node, connect_f=None, **options):
    torch.manual_seed(1)
    layer = layers.BNNeuron(8, node, connect_f, **options)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def results(layer, z, shortcut, connect_f):
    z, shortcut = (t.detach().requires_grad_() for t in (z, shortcut))
    out = layer(z, shortcut if connect_f else None)
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out))
    gradients = [z.grad, shortcut.grad, *(p.grad for p in layer.parameters())]
    states = [getattr(layer.neuron, name) for name in layer.neuron.state_names]
    return [out, *states, *gradients, *layer.buffers()]


@pytest.fixture
def calls(monkeypatch):
    """The results of the quick path, call by call."""
    seen, train = [], quick.train

    def spy(*arguments):
        seen.append(None)
        seen[-1] = train(*arguments)
        return seen[-1]

    monkeypatch.setattr(quick, "train", spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("connect_f", [None, "ADD", "AND", "IAND", "before"])
@pytest.mark.parametrize(
    "node",
    [
        neuron.IFNode(v_reset=None),
        neuron.IFNode(v_threshold=0.5, surrogate_function=surrogate.Sigmoid(3.0), store_v=False),
        neuron.LIFNode(tau=3.0, decay_input=False, v_reset=-0.5, detach_reset=False),
        neuron.ParametricLIFNode(init_tau=1.7),
        neuron.ParametricLIFNode(init_tau=1.7, learn_threshold=True, channels=8),
        neuron.QIFNode(),
        neuron.CUBALIFNode(),
        neuron.AdaptiveLIFNode(a=0.2, b=0.3),
        neuron.ILIFNode(),
    ],
    ids=["soft IF", "IF", "LIF", "PLIF", "channels", "QIF", "CUBALIF", "AdaptiveLIF", "ILIF"],
)
def test_the_same_bits_as_the_general_path(device, calls, monkeypatch, node, connect_f, dtype):
    before = connect_f == "before"
    connect_f = "ADD" if before else connect_f
    layer = block(copy.deepcopy(node), connect_f, connect_before=before).to(device)
    layer = layer.double() if dtype == torch.float64 else layer
    other, (z, shortcut) = copy.deepcopy(layer), inputs(device, dtype)
    if connect_f in ("AND", "IAND") and not node.binary_spikes:
        with pytest.raises(ValueError, match=f"connect_f='{connect_f}' needs spikes of 0 or 1"):
            layer(z, shortcut)
        return
    found = results(layer, z, shortcut, connect_f)
    assert calls.pop() is not None
    monkeypatch.setattr(quick, "train", lambda *_: None)
    for mine, general in zip(found, results(other, z, shortcut, connect_f), strict=True):
        assert (mine is None) == (general is None)
        assert mine is None or torch.equal(mine, general)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wrong_number_of_channels_is_refused(device, channels):
    layer = block(neuron.LIFNode(learn_threshold=True, channels=channels)).to(device)
    with pytest.raises(ValueError, match=f"channels={channels}"):
        layer(inputs(device)[0])


class Derived(neuron.IFNode):
    pass


UNUSUAL = {
    "evaluation": lambda layer: layer.eval(),
    "cumulative average": lambda layer: setattr(layer, "momentum", None),
    "momentum is a tensor": lambda layer: setattr(layer, "momentum", torch.tensor(0.25)),
    "eps is an int": lambda layer: setattr(layer, "eps", 1),
    "weight in half precision": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.half())),
    "bias in double precision": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias.double())),
    "weight with gaps": lambda layer: setattr(layer.weight, "data", torch.ones(16, device=layer.weight.device)[::2]),
    "running mean in double precision": lambda layer: setattr(layer, "running_mean", layer.running_mean.double()),
    "running variance with gaps": lambda layer: setattr(
        layer, "running_var", torch.ones(16, device=layer.weight.device)[::2]
    ),
    "num_batches_tracked is float": lambda layer: setattr(
        layer, "num_batches_tracked", layer.num_batches_tracked.float()
    ),
    "no running statistics": lambda layer: setattr(layer, "track_running_stats", False),
    "no buffers": lambda layer: [setattr(layer, name, None) for name in ("running_mean", "running_var")],
    "no weight": lambda layer: setattr(layer, "weight", None) or setattr(layer, "bias", None),
    "a derived neuron": lambda layer: setattr(layer, "neuron", Derived()),
    "a hook of the neuron": lambda layer: layer.neuron.register_forward_hook(lambda *_: None),
    "the torch backend": lambda layer: setattr(layer.neuron, "backend", "torch"),
    "a kept state": lambda layer: setattr(layer.neuron, "keep_state", True),
    "store_v_seq": lambda layer: setattr(layer.neuron, "store_v_seq", True),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_an_unusual_call_is_left_to_the_general_path(device, calls, monkeypatch, case):
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)
    UNUSUAL[case](layer)
    other = copy.deepcopy(layer)
    found = results(layer, z, shortcut, "ADD")
    assert calls == [None]
    monkeypatch.setattr(quick, "train", lambda *_: None)
    for mine, general in zip(found, results(other, z, shortcut, "ADD"), strict=True):
        assert (mine is None) == (general is None)
        assert mine is None or torch.equal(mine, general)


@pytest.mark.parametrize("needed", ["z", "shortcut", "weight", "bias", "w", "none", "return_skip"])
def test_gradients_that_are_needed(device, calls, monkeypatch, needed):
    layer, (z, shortcut) = block(neuron.ParametricLIFNode(), "ADD").to(device), inputs(device)
    found = []
    for run in (quick.train, lambda *_: None):
        monkeypatch.setattr(quick, "train", run)
        mine, leaves = copy.deepcopy(layer), [t.detach().clone() for t in (z, shortcut)]
        leaves += [mine.weight, mine.bias, mine.neuron.w]
        for name, leaf in zip(("z", "shortcut", "weight", "bias", "w"), leaves, strict=True):
            leaf.requires_grad_(needed in (name, "return_skip"))
        out, skip, _, _ = layers.bn_neuron(
            leaves[0], mine, mine.neuron, leaves[1], connect_f="ADD", return_skip=needed == "return_skip"
        )
        if needed != "none":
            (out.square().sum() + (0 if skip is None else skip.sum())).backward()
        found.append([out, skip, *(leaf.grad for leaf in leaves)])
    assert calls and calls[0] is not None
    assert sum(t is not None for t in found[0]) == {"return_skip": 7, "none": 1}.get(needed, 2)
    for mine, general in zip(*found, strict=True):
        assert (mine is None) == (general is None)
        assert mine is None or torch.equal(mine, general)


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_values_are_checked(kind):
    """Their ops check less than the compiled ones."""
    mode = FakeTensorMode()

    def without_values(t):
        return t.detach().to("meta") if kind == "meta" else mode.from_tensor(t.detach())

    z, shortcut = map(without_values, inputs("cpu"))
    with mode if kind == "fake" else contextlib.nullcontext():
        layer = block(None, "ADD", device="meta" if kind == "meta" else None)
        assert layer(z, shortcut).shape == z.shape
        for wrong, error in (
            ((z, shortcut[:2]), ValueError),
            ((z, shortcut.double()), TypeError),
            ((z[:, :, :4], shortcut[:, :, :4]), ValueError),
            ((z[:1, :1, :, :1, :1], shortcut[:1, :1, :, :1, :1]), ValueError),
            ((z[:0], shortcut[:0]), ValueError),
            ((z.int(), shortcut.int()), TypeError),
        ):
            with pytest.raises(error):
                layer(*wrong)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda layer: setattr(layer, "momentum", nn.Parameter(torch.tensor(0.1))), TypeError),
        (lambda layer: setattr(layer, "momentum", "0.1"), TypeError),
        (lambda layer: setattr(layer, "momentum", float("nan")), ValueError),
        (lambda layer: setattr(layer, "eps", float("inf")), ValueError),
        (lambda layer: setattr(layer, "num_features", 4), ValueError),
    ],
    ids=["momentum is a parameter", "momentum is text", "momentum is NaN", "eps is inf", "num_features"],
)
@pytest.mark.parametrize("track", [True, False])
def test_a_wrong_norm_is_an_error(device, change, error, track):
    layer, (z, shortcut) = block(None, "ADD", track_running_stats=track).to(device), inputs(device)
    change(layer)
    with pytest.raises(error) as raised:
        layer(z, shortcut)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("track", [True, False])
def test_one_value_per_channel_is_an_error(device, track):
    layer, (z, shortcut) = block(None, "ADD", track_running_stats=track).to(device), inputs(device)
    with pytest.raises(ValueError, match="more than one value"):
        layer(z[:1, :1, :, :1, :1], shortcut[:1, :1, :, :1, :1])
    with pytest.raises(RuntimeError, match="more than one value"):
        nothing = (None,) * 7
        torch.ops.sewsnn.bn_neuron_train(z[:1, :1, :, :1, :1], *nothing, (*NUMBERS, 0.1, 1, True, False))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(device, calls, reentrant):
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)
    found = []
    for run in (layer, lambda *x: checkpoint(layer, *x, use_reentrant=reentrant)):
        z.grad = None
        run(z, shortcut).square().sum().backward()
        found.append(z.grad)
    assert len(calls) == 3 and calls[0] is not None and torch.equal(*found)


def test_an_error_of_the_op_changes_nothing(device):
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)
    before = [t.clone() for t in layer.buffers()]
    for wrong, message in ((shortcut[:2], "shape of out"), (shortcut.double(), "dtype of z_seq"), (3, "a tensor")):
        with pytest.raises((TypeError, ValueError), match=message) as raised:
            layer(z, wrong)
        assert raised.value.__context__ is None
    with pytest.raises(ValueError, match="8 channels"):
        layer(z[:, :, :4], shortcut[:, :, :4])
    assert all(map(torch.equal, before, layer.buffers()))


def test_an_error_of_the_user_passes_through(device):
    """A hook of saved tensors runs after the op: the call is not repeated, and its error is not replaced."""
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)

    def pack(_):
        raise RuntimeError("no room")

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        pytest.raises(RuntimeError, match="no room"),
    ):
        layer(z, shortcut)
    assert layer.num_batches_tracked == 1


def test_options_survive_as_numbers():
    for v_reset in (None, 0.0, -0.5):
        options = (1e-5, 2, 7, 1, 3.0, False, 0.5, v_reset, 4, 2.5, False)
        assert from_numbers([float(number) for number in numbers_of(options)]) == (options, ())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(1, 0.5, "number 1 must be an integer"), (3, 1e300, "number 3"), (5, 2, "number 5 must be 0 or 1"),
     (2, float("nan"), "number 2 must be an integer"), (1, 9, "unknown connection 9"), (3, 7, "unknown neuron kind 7"),
     (6, float("inf"), "v_threshold must be finite"), (8, float("nan"), "v_reset must be finite")],
)  # fmt: skip
def test_wrong_numbers_are_errors(device, place, value, message):
    z, channels = torch.randn(4, 2, 8, 3, 3, device=device), torch.ones(8, device=device)
    if place < 6:  # on the meta device, too
        for op in (torch.ops.sewsnn.bn_neuron_train, torch.ops.sewsnn.bn_neuron_backward):
            with pytest.raises(RuntimeError, match=re.escape(f"{value}")):
                numbers = [*NUMBERS[:place], value, *NUMBERS[place + 1 :]]
                if op is torch.ops.sewsnn.bn_neuron_train:
                    op(z.to("meta"), *(None,) * 7, (*numbers, 0.1, 1, True, False))
                else:
                    op(z.to("meta"), None, z.to("meta"), *(None,) * 6, (*numbers, True, False, False))
    statistics = torch.ones(2, 8, device=device)
    wrong = [*NUMBERS]
    wrong[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.bn_neuron_train(
            z, None, channels, channels, None, None, None, None, (*wrong, 0.1, 1, True, False)
        )
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.bn_neuron_backward(
            z, None, z, None, statistics, channels, channels, None, None, (*wrong, True, False, False)
        )


def test_a_list_of_another_length_is_an_error(device):
    z = torch.randn(4, 2, 8, 3, 3, device=device)
    nothing = (None,) * 7
    for numbers in ((), NUMBERS, (*NUMBERS, 0.1, 1, True, False, 0)):
        with pytest.raises(RuntimeError, match="numbers"):
            torch.ops.sewsnn.bn_neuron_train(z, *nothing, numbers)
        with pytest.raises(RuntimeError, match="number"):
            torch.ops.sewsnn.bn_neuron_backward(z, None, z, *nothing[:6], (*numbers, 0))


@pytest.mark.parametrize("connect_f", ["ADD", "AND"])
def test_batched_gradients(device, connect_f):
    """``torch.autograd.grad(..., is_grads_batched=True)`` runs backward inside a vmap."""
    layer, (z, shortcut) = block(neuron.ParametricLIFNode(), connect_f).to(device), inputs(device)
    leaves = [z, shortcut, *layer.parameters()]
    out = layer(z, shortcut)
    grads = torch.randn(3, *out.shape, device=device)
    batched = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(out, leaves, grad, retain_graph=True) for grad in grads]
    for mine, each in zip(batched, zip(*singly, strict=True), strict=True):
        assert torch.equal(mine, torch.stack(each))
