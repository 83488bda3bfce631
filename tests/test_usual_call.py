"""The usual path of bn_neuron in training (layers/usual.py): it gives what the general path gives, or leaves the call
to it."""

import copy

import pytest
import torch
from torch import nn

from sewsnn import layers, neuron, surrogate
from sewsnn.layers import usual
from sewsnn.ops.options import Options, from_numbers, numbers_of

NUMBERS = numbers_of(Options(1e-5, 0, 0, 0, 2.0, True, 1.0, 0.0, 0, 2.0, True))


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
    return [out, layer.neuron.v, *gradients, *layer.buffers()]


@pytest.fixture
def calls(monkeypatch):
    """The results of the usual path, call by call."""
    seen, train = [], usual.train

    def spy(*arguments):
        seen.append(None)
        seen[-1] = train(*arguments)
        return seen[-1]

    monkeypatch.setattr(usual, "train", spy)
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
    ],
    ids=["soft IF", "IF", "LIF", "PLIF"],
)
def test_the_same_bits_as_the_general_path(device, calls, monkeypatch, node, connect_f, dtype):
    before = connect_f == "before"
    connect_f = "ADD" if before else connect_f
    layer = block(copy.deepcopy(node), connect_f, connect_before=before).to(device)
    layer = layer.double() if dtype == torch.float64 else layer
    other, (z, shortcut) = copy.deepcopy(layer), inputs(device, dtype)
    found = results(layer, z, shortcut, connect_f)
    assert calls.pop() is not None
    monkeypatch.setattr(usual, "train", lambda *_: None)
    for mine, general in zip(found, results(other, z, shortcut, connect_f), strict=True):
        assert (mine is None) == (general is None)
        assert mine is None or torch.equal(mine, general)


class Derived(neuron.IFNode):
    pass


LEFT = {
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
    "no weight": lambda layer: setattr(layer, "weight", None) or setattr(layer, "bias", None),
    "a derived neuron": lambda layer: setattr(layer, "neuron", Derived()),
    "a hook of the neuron": lambda layer: layer.neuron.register_forward_hook(lambda *_: None),
    "the torch backend": lambda layer: setattr(layer.neuron, "backend", "torch"),
    "a kept state": lambda layer: setattr(layer.neuron, "keep_state", True),
    "store_v_seq": lambda layer: setattr(layer.neuron, "store_v_seq", True),
}


@pytest.mark.parametrize("case", LEFT)
def test_an_unusual_call_is_left_to_the_general_path(device, calls, monkeypatch, case):
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)
    LEFT[case](layer)
    other = copy.deepcopy(layer)
    found = results(layer, z, shortcut, "ADD")
    assert calls == [None]
    monkeypatch.setattr(usual, "train", lambda *_: None)
    for mine, general in zip(found, results(other, z, shortcut, "ADD"), strict=True):
        assert mine is None or torch.equal(mine, general)


def test_an_error_of_the_op_changes_nothing(device):
    layer, (z, shortcut) = block(None, "ADD").to(device), inputs(device)
    before = [t.clone() for t in layer.buffers()]
    for wrong, message in ((shortcut[:2], "shape of out"), (shortcut.double(), "dtype of z_seq"), (3, "a tensor")):
        with pytest.raises((TypeError, ValueError), match=message):
            layer(z, wrong)
    with pytest.raises(ValueError, match="8 channels"):
        layer(z[:, :, :4], shortcut[:, :, :4])
    with pytest.raises(ValueError, match="more than one value"):
        layer(z[:1, :1, :, :1, :1], shortcut[:1, :1, :, :1, :1])
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
        options = Options(1e-5, 2, 7, 1, 3.0, False, 0.5, v_reset, 4, 2.5, False)
        assert from_numbers([float(number) for number in numbers_of(options)]) == options


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(1, 0.5, "number 1 must be an integer"), (3, 1e300, "number 3"), (5, 2, "number 5 must be 0 or 1"),
     (2, float("nan"), "number 2 must be an integer"), (1, 9, "unknown connection 9"), (3, 7, "unknown neuron kind 7"),
     (6, float("inf"), "v_threshold must be finite"), (8, float("nan"), "v_reset must be finite")],
)  # fmt: skip
def test_wrong_numbers_are_errors(device, place, value, message):
    z, channels = torch.randn(4, 2, 8, 3, 3, device=device), torch.ones(8, device=device)
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
