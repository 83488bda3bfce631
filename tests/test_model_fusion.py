"""Networks with fused batch norm, neuron and connection, compared with the same networks module by module."""

import copy
import pickle

import pytest
import torch
from cases import EPS, current
from torch import nn

from sewsnn import layers, models, neuron
from sewsnn.analysis import firing_rates
from sewsnn.models.blocks import RESIDUALS, Block, Style
from sewsnn.ops import bn as native
from sewsnn.ops.reference import CONNECT

KINDS = [{"connect_f": connect_f} for connect_f in CONNECT] + [{"residual": "spiking"}, {"residual": "plain"}]


def net(fused=True, **settings):
    torch.manual_seed(0)
    settings = {"stem": "small", "num_classes": 5, "T": 3, **settings}
    return models.create_model("sew_resnet", blocks=[2, 1], widths=[4, 8], fused=fused, **settings)


def batch(device, still=True, dtype=torch.float64):
    return current((3, 3, 8, 8) if still else (3, 3, 3, 8, 8), dtype, device)


def step(model, x):
    """Returns the logits, and by name the gradients and buffers after a training step."""
    logits = model(x)
    (logits * current(logits.shape, logits.dtype, logits.device, seed=3)).sum().backward()
    left = {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return logits.detach(), {**left, **dict(model.named_buffers())}


def assert_same(actual, expected):
    """Compares in float64: rounding differs by far less than 1e8 ulps, and no potential is so near the threshold."""
    assert actual.keys() == expected.keys() and all(value is not None for value in expected.values())
    scale = max(float(value.abs().max()) for value in expected.values())
    torch.testing.assert_close(actual, expected, rtol=1e8 * EPS[torch.float64], atol=1e6 * EPS[torch.float64] * scale)


@pytest.mark.parametrize("still", [True, False], ids=["still", "sequence"])
@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_fused_equals_modules(kind, bottleneck, still, device):
    """Compares outputs, gradients and running statistics in training, in evaluation, and with frozen statistics."""
    fused, modules = (net(f, bottleneck=bottleneck, **kind).to(device).double() for f in (True, False))
    x = batch(device, still)
    for training in (True, False):
        for (logits, left), (expected, expected_left) in [(step(m.train(training), x) for m in (fused, modules))]:
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
            assert_same(left, expected_left)
            assert logits.std() > 0.01 and left["grad conv1.weight"].norm() > 1e-4
    with torch.no_grad():
        torch.testing.assert_close(fused(x), modules(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [neuron.ParametricLIFNode, lambda: neuron.LIFNode(v_reset=None, detach_reset=False)])
def test_other_neurons_and_the_imagenet_stem(make, device):
    """Cases: PLIF's w of every layer, a stem that pools, images in channels_last."""
    fused, modules = (net(f, neuron=make, stem="imagenet", connect_f="IAND").to(device).double() for f in (True, False))
    x = current((2, 3, 17, 20), torch.float64, device, scale=2.0)
    (logits, left), (expected, expected_left) = step(fused, x), step(modules, x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert_same(left, expected_left)
    last = fused.to(memory_format=torch.channels_last)
    fused.zero_grad()
    again, _ = step(last, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9)


def test_channels_last_stays_channels_last(device):
    """No layer, from the stem's convolution to the last block, copies to another order: this would cost a pass."""
    model = net(T=2).to(device, memory_format=torch.channels_last)
    strides = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, z: strides.append((inputs[0], z)))
    model(batch(device, dtype=torch.float32).contiguous(memory_format=torch.channels_last))
    assert len(strides) == 8
    for tensors in strides:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_state_is_the_same(kind):
    """Names, order, shapes, dtypes and initial values are equal, and each network loads the state dict of the other."""
    fused, modules = (net(f, **kind) for f in (True, False))
    state, expected = fused.state_dict(), modules.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    step(fused, batch("cpu", dtype=torch.float32))
    modules.load_state_dict(fused.state_dict())


def test_every_layer_is_one_op(monkeypatch, device):
    """One op per neuron; the norms in Spiking ResNet's shortcuts have no neuron; ``fused=False`` uses no op."""
    calls = []
    for name in ("bn_neuron", "bn_neuron_train"):
        run = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, run=run, **kw: calls.append(a) or run(*a, **kw))
    for residual, expected in zip(RESIDUALS, (8, 8, 7), strict=True):
        for fused in (True, False):
            calls.clear()
            net(fused, residual=residual).to(device)(batch(device, dtype=torch.float32))
            assert len(calls) == (expected if fused else 0)


def test_hooks_on_layers_are_called(device):
    """The firing rates of the fused network are those of its modules, because hooks measure them."""
    fused, modules = (net(f).to(device).double() for f in (True, False))
    rates = [firing_rates(m, [batch(device)]) for m in (fused, modules)]
    assert rates[0] == rates[1] and len(rates[0]) == 8 and any(0 < rate < 1 for rate in rates[0].values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_bfloat16_autocast(kind, device):
    """It trains, with gradients of every parameter in float32, and a loss near that in float32.

    A bfloat16 number is off by up to 2^-9, which flips some spikes: the logits agree in the main, not number by number.
    """
    losses = []
    for autocast in (True, False):
        model, target = net(**kind).to(device), torch.tensor([0, 1, 2], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(batch(device, dtype=torch.float32))
            loss = nn.functional.cross_entropy(logits, target)
        loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        assert model.layer1[0].bn1.running_mean.dtype == torch.float32
        assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]


def test_a_block_is_given_float32_spikes_under_autocast(device):
    """Autocast casts the shortcut like the branch; spikes are exact in both dtypes."""
    block = models.BasicBlock(4, 4, 1, Style(neuron=neuron.IFNode)).to(device)
    spikes = (current((3, 2, 4, 5, 5), device=device) > 1).float()
    with torch.autocast(device, torch.bfloat16):
        out = block(spikes)
    assert out.dtype == torch.bfloat16 and ((out - spikes == 0) | (out - spikes == 1)).all()


def test_deterministic_algorithms():
    """torch's deterministic mode fills new memory with NaN: every value is written, and no op is refused."""
    expected = step(net(), batch("cpu", dtype=torch.float32))
    torch.use_deterministic_algorithms(True)
    try:
        actual = step(net(), batch("cpu", dtype=torch.float32))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(actual[1][name], value) for name, value in expected[1].items())


def test_half_and_copies(device):
    """A model with only bfloat16 numbers, and its copy."""
    model = net().to(device).bfloat16()
    x = batch(device, dtype=torch.bfloat16)
    again = copy.deepcopy(model)
    logits, left = step(model, x)
    assert logits.dtype == torch.bfloat16 and all(value.isfinite().all() for value in left.values())
    assert torch.equal(step(again, x)[0], logits)


def test_an_error_leaves_the_network_as_it_was():
    """A NaN in a batch: the first norm raises an error, and no running statistic changes."""
    model = net()
    before = copy.deepcopy(model.state_dict())
    x = batch("cpu", dtype=torch.float32)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        model(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_whoever_watches_a_block_or_a_stage_sees_its_call(device):
    model = net().to(device).double()
    x = batch(device)
    expected = model(x).detach()
    seen = []
    watched = [model.layer1[1], model.layer2[0].downsample, model.layer2]
    for module in watched:
        module.register_forward_hook(lambda module, args, output: seen.append((module, output.shape)))
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-12)
    assert [module for module, _ in seen] == watched
    assert [shape[:2] for _, shape in seen] == [(3, 3), (9, 8), (3, 3)]


def test_global_hooks_see_every_call(device):
    """Operation counters and profilers see all modules; the results stay the same."""
    model = net(stem="imagenet").to(device).double()
    x = batch(device)
    expected = model(x).detach()
    seen = set()
    watch = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        actual = model(x).detach()
    finally:
        watch.remove()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert seen == set(model.modules())


def test_a_forward_put_on_a_block_or_a_stage_runs(device):
    model = net().to(device).double()
    x = batch(device)
    expected = model(x).detach()
    seen = []
    replaced = [model.layer1[1], model.layer2[0].downsample, model.layer2, model.layer1[0].sn1, model.layer1[0].conv2]
    for module in replaced:
        module.forward = lambda *args, before=module.forward, module=module: (seen.append(module), before(*args))[1]
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-12)
    assert set(seen) == set(replaced)


def test_what_is_put_in_the_place_of_a_stage_or_of_the_pooling_is_called(device):
    model = net(stem="imagenet").to(device).double()
    model.maxpool = nn.AvgPool2d(2)
    model.layer2, model.fc = nn.Identity(), nn.Identity()
    x = batch(device)
    actual = model.eval()(x)
    z = model.bn1(model.conv1(x))
    s = model.sn1(z.expand(3, *z.shape)).flatten(0, 1)
    pooled = model.maxpool(s).unflatten(0, (3, 3))
    torch.testing.assert_close(actual, model.layer1(pooled).mean((0, 3, 4)), rtol=1e-9, atol=1e-9)


def test_networks_of_copied_nodes_are_pickled():
    model = net(neuron=neuron.LIFNode(tau=3.0)).eval()
    again = pickle.loads(pickle.dumps(model))
    x = batch("cpu", dtype=torch.float32)
    assert torch.equal(again(x), model(x))


def test_a_method_that_a_call_runs_put_on_a_convolution(device):
    """Quantisation replaces weights in this way: packing and folding must not bypass it."""
    x = batch(device)
    torch.manual_seed(0)
    model = net(pack_spikes=True).to(device).double()
    conv = model.layer1[0].conv2
    expected = model(x)
    before = conv._conv_forward
    conv._conv_forward = lambda x, weight, bias: before(x, weight.sign() * weight.abs().mean(), bias)
    packed = model(x)
    for module in model.modules():
        if isinstance(module, Block):
            module.style = module.style._replace(pack_spikes=False)
    assert not torch.equal(packed, expected)
    torch.testing.assert_close(model(x), packed, rtol=1e-12, atol=1e-12)
    model.eval()
    torch.testing.assert_close(layers.fuse(model)(x), model(x), rtol=1e-6, atol=1e-8)


class Silent(neuron.IFNode):
    def __call__(self, x):
        return super().__call__(x) * 0


def test_a_class_with_a_call_of_its_own(device):
    z = torch.randn(3, 2, 4, 5, 5, device=device) + 1
    assert layers.BNNeuron(4, Silent()).to(device)(z).count_nonzero() == 0


def test_a_forward_put_on_a_module_after_compiling(device):
    """A compiled network notices the change."""
    torch._dynamo.reset()
    model = net().to(device).eval()
    compiled = torch.compile(model, backend="eager")
    x = batch(device).float()
    compiled(x)
    for module in (model.layer1[0].sn2, model.bn1, model.layer1[1], model.layer2):
        before = module.forward
        module.forward = lambda *args, before=before: before(*args) * 0.5
        torch.testing.assert_close(compiled(x), model(x))
