"""Batch norm and neuron in one op: when this happens, and that only rounding changes."""

import copy
import pickle

import pytest
import torch
from sj_cases import NODES, V2, assert_same_step, converted, current, gradients, step, watched
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sewsnn

every_node = pytest.mark.parametrize("kind", NODES)


def convolution(kind="IF", **settings):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 5, 3, padding=1),
        layer.BatchNorm2d(5),
        NODES[kind](**settings),
        layer.MaxPool2d(2),
        layer.Conv2d(5, 4, 3),
        layer.BatchNorm2d(4),
        NODES[kind](**settings),
    )
    functional.set_step_mode(net, "m")
    return net


SHAPE = (4, 3, 2, 8, 8)


@every_node
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_sequential(kind, training, v_reset, fused):
    """Compares outputs, gradients and running statistics in double, where rounding changes no spike."""
    net = convolution(kind, v_reset=v_reset).double().train(training)
    after, report = converted(net)
    assert [entry.fused_with for entry in report.replaced] == ["1", "5"] and report.fused == 2
    if not V2:
        net.train()  # 0.0.0.0.14 has no surrogate in evaluation
        for module in net if not training else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(2):
        assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 4


def test_sequential_in_float32():
    """Rounding may change only spikes at the threshold: at most one in ten thousand."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.BatchNorm2d(16, step_mode="m"), neuron.LIFNode(step_mode="m"))
    after, _ = converted(net)
    x = current(4, 2, 16, 32, 32)
    assert (after(x) != net(x)).double().mean() < 1e-4


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_norms_of_any_dimension(dims, fused):
    norm = (layer.BatchNorm1d, layer.BatchNorm2d, layer.BatchNorm3d)[dims - 1]
    net = nn.Sequential(norm(3, step_mode="m"), neuron.IFNode(step_mode="m")).double()
    after, _ = converted(net)
    x = current(4, 2, 3, *(5, 4, 3)[:dims], dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 1


def test_what_the_norm_refuses(fused):
    net = nn.Sequential(layer.BatchNorm1d(3, step_mode="m"), neuron.IFNode(step_mode="m"))
    after, _ = converted(net)
    if V2:
        assert after(current(4, 2, 3)).shape == (4, 2, 3) and len(fused) == 1
    else:
        with pytest.raises(ValueError, match="expected x with shape"):
            after(current(4, 2, 3))
    for x in (current(4, 2, 3, 5, 5), current(4, 2, 7, 5)):
        with pytest.raises((ValueError, RuntimeError)) as refused:
            net(x)
        with pytest.raises(type(refused.value)) as also:
            after(x)
        assert str(also.value) == str(refused.value)


@every_node
@pytest.mark.parametrize("inner", [nn, layer])
def test_container_over_time(kind, inner, fused):
    """The authors' old style: SeqToANNContainer(conv, bn), then the neuron."""
    torch.manual_seed(0)
    container = layer.SeqToANNContainer(inner.Conv2d(2, 5, 3, padding=1), inner.BatchNorm2d(5))
    net = nn.Sequential(container, NODES[kind](step_mode="m")).double()
    after, report = converted(net)
    assert [entry.fused_with for entry in report.replaced] == ["0.1"]
    x = current(*SHAPE, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 1 and list(after.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("watched", ["0", "1", "1.surrogate_function", "2", "2.0", "3"])
def test_hooks_are_called(watched, fused):
    """Every module with a hook runs by itself."""
    net = nn.Sequential(
        layer.BatchNorm2d(5),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
        layer.SeqToANNContainer(nn.BatchNorm2d(5)),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
    )
    functional.set_step_mode(net, "m")
    sewsnn.convert.from_spikingjelly(net)
    calls = []
    net.get_submodule(watched).register_forward_hook(lambda *_: calls.append(1))
    net(current(4, 3, 5, 8, 8))
    surrogate_calls = 0 if V2 else 4  # 2.0 only reads the settings of the surrogate
    assert len(calls) == (surrogate_calls if "surrogate" in watched else 1)
    assert len(fused) == (2 if watched == "2" else 1)  # a hook on the container may read its deferred result


def test_a_hook_on_the_neuron_sees_its_spikes(fused):
    net = convolution()
    after, _ = converted(net)
    x = current(*SHAPE)
    expected, actual = {}, {}
    for model, seen in ((net, expected), (after, actual)):
        with watched(model, seen):
            model(x)
    assert not fused and len(actual) == 2 and all(torch.equal(actual[name], s) for name, s in expected.items())


def test_step_by_step_nothing_is_fused(fused):
    net = convolution().eval()
    after, _ = converted(net)
    for model in (net, after):
        functional.set_step_mode(model, "s")
    with torch.no_grad():
        for x in current(*SHAPE):
            assert torch.equal(net(x), after(x))
    assert not fused


@every_node
def test_streaming(kind, fused):
    """Calls without reset in evaluation: the first is fused and starts from rest, the others start from its v."""
    net = convolution(kind).double().eval()
    after, _ = converted(net)
    x = current(12, *SHAPE[1:], dtype=torch.float64)
    with torch.no_grad():
        for chunk in x.chunk(3):
            assert torch.equal(net(chunk), after(chunk))
            torch.testing.assert_close(after[2].v, net[2].v)
    assert len(fused) == 2


def test_a_forgotten_reset(fused):
    """A missing reset raises in backward, as in SpikingJelly; with reset or detach, or without backward, it works."""
    after, _ = converted(convolution())
    x = current(*SHAPE)
    after(x).sum().backward()
    y = after(x)
    with pytest.raises(RuntimeError, match=r"reset_net\(net\) or detach_net\(net\).*fuse=False"):
        y.sum().backward()
    functional.detach_net(after)
    after(x).sum().backward()
    functional.reset_net(after)
    after(x).sum().backward()
    with torch.no_grad():
        after(x)
    functional.reset_net(after)
    after(x), after(x)  # without backward there is no error


def test_training_through_v():
    """A potential in the loss raises an error instead of a silent zero; with fuse=False the gradient is right."""
    net = nn.Sequential(layer.BatchNorm2d(2, step_mode="m"), neuron.IFNode(step_mode="m"))
    x = current(*SHAPE)
    net(x)
    expected = torch.autograd.grad(net[1].v.square().sum(), net[0].weight)
    functional.reset_net(net)
    after, _ = converted(net)
    after(x)
    with pytest.raises(RuntimeError, match="fuse=False"):
        after[1].v.square().sum().backward()
    after, report = converted(net, fuse=False)
    assert report.fused == 0 and type(after) is nn.Sequential
    after(x)
    torch.testing.assert_close(torch.autograd.grad(after[1].v.square().sum(), after[0].weight), expected)


@every_node
def test_truncated_backpropagation_over_calls(kind):
    net = convolution(kind).double()
    after, _ = converted(net)
    x = current(8, *SHAPE[1:], dtype=torch.float64)
    for model in (net, after):
        for chunk in x.chunk(2):
            model(chunk).square().sum().backward()
            functional.detach_net(model)
    for a, b in zip(after.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_shared_neuron_goes_on_from_its_state(fused):
    node = neuron.LIFNode(step_mode="m")
    norms = [layer.BatchNorm2d(2, step_mode="m") for _ in range(2)]
    net = nn.Sequential(norms[0], node, norms[1], node).double()
    after, report = converted(net)
    assert after[1] is after[3] and len(report) == 1 and report.fused == 0
    x = current(*SHAPE, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-10)
    assert not fused


def test_a_shared_norm(fused):
    norm = layer.BatchNorm2d(2, step_mode="m")
    net = nn.Sequential(norm, neuron.LIFNode(step_mode="m"), norm, neuron.LIFNode(step_mode="m")).double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 2


def test_other_norms_are_left(fused):
    class OwnNorm(layer.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    x = current(*SHAPE)
    for net in (
        nn.Sequential(OwnNorm(2), neuron.IFNode()),
        nn.Sequential(layer.GroupNorm(1, 2), neuron.IFNode()),
        nn.Sequential(layer.BatchNorm2d(2), nn.Tanh(), neuron.IFNode()),
    ):
        functional.set_step_mode(net, "m")
        after, report = converted(net)
        assert type(after) is type(net) and len(report) == 1 and report.fused == 0
        assert torch.equal(net(x), after(x))
        assert report.refresh().fused == 0 and report.replaced[0].reason
    assert not fused


def test_a_sequential_stays_one():
    """Containers keep their names, slices, copies, pickles and changes."""
    net = convolution()
    keys = list(net.state_dict())
    after, _ = converted(net)
    x = current(*SHAPE)
    expected = after(x)
    functional.reset_net(after)
    assert list(after.state_dict()) == keys and isinstance(after, nn.Sequential)
    assert torch.equal(after[3:](after[:3](x)), expected)
    functional.reset_net(after)
    for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        assert torch.equal(copied(x), expected)
    after.append(nn.Flatten(1))
    assert after(x).shape == (4, expected[0].numel())


@pytest.mark.parametrize("name", ["momentum", "affine", "track_running_stats"])
def test_settings_of_the_norm(name, fused):
    settings = {"momentum": None} if name == "momentum" else {name: False}
    net = nn.Sequential(layer.BatchNorm2d(2, step_mode="m", **settings), neuron.IFNode(step_mode="m")).double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(2):
        assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 2


def test_autocast(fused):
    """With bfloat16 convolutions, spikes are in bfloat16 and have about the same rate."""
    net = convolution(surrogate_function=surrogate.ATan())
    after, _ = converted(net)
    x = current(*SHAPE)
    rates = []
    for model in (net, after):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        rates.append(float(y.detach().float().mean()))
        assert y.dtype == torch.bfloat16 or model is net
    assert rates[1] == pytest.approx(rates[0], abs=0.05)
    assert len(fused) == 2


def test_channels_last(fused):
    net = convolution().double()
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    expected = step(net, x)[0]["out"]
    y = after(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, SHAPE[:2]))
    torch.testing.assert_close(y.detach(), expected)
    assert len(fused) == 2


@pytest.mark.parametrize(
    "norm", [layer.BatchNorm2d(2, step_mode="m"), layer.SeqToANNContainer(nn.BatchNorm2d(2)), None]
)
@pytest.mark.parametrize("dims", [(3, 4), (0, 1), None])
def test_the_order_in_memory(norm, dims):
    """``view`` works on the output of a converted neuron wherever it works in SpikingJelly. None: channels_last."""
    node = neuron.LIFNode(step_mode="m")
    net = node if norm is None else nn.Sequential(norm, node)
    after, _ = converted(net)
    x = current(*SHAPE)
    if dims is None:
        x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, SHAPE[:2])
    else:
        x = x.transpose(*dims).contiguous().transpose(*dims)
    assert after(x).stride() == net(x).stride()


def test_an_empty_batch(fused):
    net = nn.Sequential(layer.BatchNorm2d(2, step_mode="m"), neuron.LIFNode(step_mode="m"))
    after, _ = converted(net)
    x = torch.zeros(4, 0, 2, 8, 8)
    assert after(x).shape == net(x).shape == x.shape
    torch.testing.assert_close(dict(after.named_buffers()), dict(net.named_buffers()), equal_nan=True)
    assert not fused


def test_global_hooks_see_every_call(fused):
    """Global hooks, as profilers and operation counters use them."""
    after, _ = converted(convolution())
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    after(current(*SHAPE))
    hook.remove()
    assert seen == [*after, after] and not fused


def test_one_time_step(fused):
    net = convolution().double()
    after, _ = converted(net)
    x = current(1, *SHAPE[1:], dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 2


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training, fused):
    """One graph, as before the conversion. In training neurons are not fused, so v keeps its graph."""
    net = convolution("LIF").double().train(training)
    after, _ = converted(net)
    x = current(*SHAPE, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        y, expected = torch.compile(after, backend="aot_eager", fullgraph=True)(x), net(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(after[2].v, net[2].v)
    assert after[2].v.requires_grad == training
    if training:
        found = [gradients(s.sum(), list(model.parameters())) for model, s in ((after, y), (net, expected))]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_with_numbers_that_change():
    """With ``dynamic=True`` the numbers of a node are symbols from the first call on."""
    net = convolution("LIF").double().eval()
    after, _ = converted(net)
    compiled = torch.compile(after, backend="aot_eager", fullgraph=True, dynamic=True)
    x = current(*SHAPE, dtype=torch.float64)
    for v_threshold in (1.0, 0.5):
        for model in (net, after):
            functional.reset_net(model)
            model[2].v_threshold = v_threshold
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))
