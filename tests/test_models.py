"""SEW ResNets, Spiking ResNets and plain networks. Fused or not: test_model_fusion.py."""

import pytest
import torch

from sewsnn import functional, models, neuron, surrogate
from sewsnn.models.blocks import RESIDUALS, Block
from sewsnn.models.network import count_parameters
from sewsnn.ops.reference import CONNECT

# Parameters (torchvision's counts), neuron layers, and the shortcuts' share of both: 1x1 convolutions with BN and, in
# SEW ResNet, a neuron. SEW has one neuron layer per convolution, Spiking ResNet none in its shortcuts.
PUBLISHED = {
    18: (11_689_512, 20, 173_824, 3),
    34: (21_797_672, 36, 173_824, 3),
    50: (25_557_032, 53, 2_776_576, 4),
    101: (44_549_160, 104, 2_776_576, 4),
    152: (60_192_808, 155, 2_776_576, 4),
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("depth", PUBLISHED)
def test_sizes(depth, residual):
    with torch.device("meta"):
        model = models.create_model(f"{residual}_resnet{depth}")
    layers = sum(isinstance(m, neuron.IFNode) for m in model.modules())
    parameters, neurons, in_shortcuts, shortcuts = PUBLISHED[depth]
    assert count_parameters(model) == parameters - (in_shortcuts if residual == "plain" else 0)
    assert layers == neurons - (0 if residual == "sew" else shortcuts)


def test_names_are_torchvisions():
    with torch.device("meta"):
        keys = models.create_model("sew_resnet50").state_dict().keys()
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "layer4.2.bn2.bias", "fc.bias"} <= keys
    assert {"layer1.0.downsample.0.weight", "layer2.0.downsample.1.running_mean"} <= keys
    with torch.device("meta"):
        plif = models.create_model("sew_resnet18", neuron=neuron.ParametricLIFNode).state_dict().keys()
    assert {"sn1.w", "layer2.0.sn1.w", "layer2.0.downsample_sn.w"} <= plif


def test_connections():
    """Table 1 of the paper."""
    a, s = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
    assert CONNECT["ADD"](a, s).tolist() == [0, 1, 1, 2]
    assert CONNECT["AND"](a, s).tolist() == [0, 0, 0, 1]
    assert CONNECT["IAND"](a, s).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("connect_f", CONNECT)
def test_zero_init_makes_blocks_identities(connect_f, bottleneck):
    """ADD and IAND with A = 0, AND with A = 1 (section 3.2): the block returns its input."""
    make = models.Bottleneck if bottleneck else models.BasicBlock
    net = models.SEWResNet(make, [1], [8], connect_f=connect_f, zero_init_residual=True, stem="small", T=3)
    block = net.layer1[0]
    spikes = torch.randint(0, 2, (3, 2, 8, 5, 5)).float()
    shortcut = spikes
    if block.downsample is not None:  # the first bottleneck widens
        shortcut = block.downsample_sn(block.downsample(spikes.flatten(0, 1)).unflatten(0, (3, 2)))
    torch.testing.assert_close(block(spikes), shortcut, rtol=0, atol=0)


def net(**settings):
    torch.manual_seed(0)
    return models.create_model("sew_resnet", blocks=[1, 1], widths=[4, 8], num_classes=5, stem="small", **settings)


@pytest.mark.parametrize("connect_f", CONNECT)
def test_outputs_and_gradients(connect_f, device):
    model = net(connect_f=connect_f, T=3).to(device)
    x = torch.rand(2, 3, 8, 8, device=device)
    logits = model(x)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.conv1.weight.grad.abs().sum() > 0


def test_a_still_sequence_is_a_static_image(device):
    model = net(T=4).to(device).eval()
    x = torch.rand(2, 3, 8, 8, device=device)
    with torch.no_grad():
        static, sequence = model(x), model(x.expand(4, *x.shape))
        steps = model(x, return_seq=True)
    torch.testing.assert_close(static, sequence, rtol=1e-5, atol=1e-5)
    assert steps.shape == (4, 2, 5)
    torch.testing.assert_close(steps.mean(0), static, rtol=1e-5, atol=1e-5)


def test_backends_agree(device):
    x = torch.rand(2, 3, 8, 8, device=device)
    results = []
    for backend in ("native", "torch"):
        model = net(neuron=lambda b=backend: neuron.LIFNode(backend=b)).to(device).double()
        logits = model(x.double())
        logits.square().sum().backward()
        results.append((logits.detach(), model.conv1.weight.grad))
    torch.testing.assert_close(*(r[0] for r in results))
    torch.testing.assert_close(*(r[1] for r in results))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"connect_f": "OR"}, "connect_f must be one of 'ADD'"),
        ({"T": 0}, "T must be at least 1"),
        ({"residual": "dense"}, "residual must be one of 'sew', 'spiking', 'plain', got 'dense'"),
        ({"stem": "big"}, "stem must be"),
        ({"blocks": [1]}, "one entry per stage"),
        ({"blocks": [0, 1]}, "must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        models.create_model("sew_resnet", **{"blocks": [1, 1], "widths": [4, 8], **settings})


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'sew_resnet_18' \(nearest: 'sew_resnet18'\)"):
        models.create_model("sew_resnet_18")


def test_bad_input_shape():
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        net()(torch.rand(3, 8, 8))


@pytest.mark.parametrize(
    "make",
    [None, neuron.LIFNode, lambda: neuron.LIFNode(tau=3.0), neuron.ParametricLIFNode(init_tau=3.0)],
    ids=["default", "class", "function", "node"],
)
def test_every_layer_has_a_neuron_of_its_own(make):
    model = net(neuron=make)
    nodes = [m for m in model.modules() if isinstance(m, neuron.BaseNode)]
    assert len(nodes) == len(set(map(id, nodes))) == 6
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    assert len({type(n) for n in nodes}) == 1 and (make is None or nodes[0].tau == pytest.approx(nodes[-1].tau))


def test_the_last_neuron_of_a_block_can_be_another():
    """The 0/1-gradient experiment (A.5), in every residual form and both block types."""
    last = neuron.IFNode(v_threshold=0.5, surrogate_function=surrogate.UnitATan())
    for residual in RESIDUALS:
        for bottleneck in (False, True):
            model = net(bottleneck=bottleneck, residual=residual, last_neuron=last)
            blocks = [m for m in model.modules() if isinstance(m, Block)]
            others = {m for b in blocks for m in b.modules() if isinstance(m, neuron.IFNode)} | {model.sn1}
            lasts = {getattr(b, f"sn{b.convs}") for b in blocks}
            assert len(lasts) == 2 and last not in lasts
            assert {n.v_threshold for n in lasts} == {0.5} and {n.v_threshold for n in others - lasts} == {1.0}
    pooled = models.create_model("spiking_cifar10_net", last_neuron=lambda: neuron.IFNode(v_threshold=0.5))
    thresholds = [m.v_threshold for m in pooled.modules() if isinstance(m, neuron.IFNode)]
    assert thresholds.count(0.5) == 10 and len(thresholds) == 21


def test_gradients_pass_the_last_neuron_with_its_surrogate():
    """The fused op uses the settings of the neuron: its results equal those of the modules."""
    results = []
    for fused in (True, False):
        last = neuron.IFNode(v_threshold=0.5, surrogate_function=surrogate.UnitATan())
        model = net(residual="spiking", last_neuron=last, fused=fused).double()
        model(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()).square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, stems, kernel",
    [
        ("sew_resnet18", ["conv1"], 7),
        ("spiking_7b_net", ["layer1.conv"], 1),
        ("sew_wide_7b_net", ["layer1.conv", "layer5.conv"], 1),
        ("sew_cifar10_net", ["layer1.conv"], 3),
    ],
)
def test_stem_kernel(name, stems, kernel):
    """The stem has the given kernel size, and padding that keeps the image size."""
    size = 128 if "7b" in name else 32
    for settings, expected in (({}, kernel), ({"stem_kernel": 5}, 5)):
        model = models.create_model(name, **settings)
        convs = [model.get_submodule(stem) for stem in stems]
        assert [(c.kernel_size, c.padding) for c in convs] == [((expected,) * 2, (expected // 2,) * 2)] * len(stems)
    with torch.no_grad():
        assert model(torch.rand(1, convs[0].in_channels, size, size)).isfinite().all()


@pytest.mark.parametrize("name", ["sew_resnet18", "sew_7b_net"])
@pytest.mark.parametrize(
    "kernel, error, message",
    [(2, ValueError, "stem_kernel must be odd, got 2"), (3.0, TypeError, "stem_kernel must be an int, got float")],
)
def test_bad_stem_kernel(name, kernel, error, message):
    with pytest.raises(error, match=message):
        models.create_model(name, stem_kernel=kernel)


def test_return_seq_as_a_setting_and_as_an_argument():
    x = torch.rand(2, 3, 8, 8)
    always, asked = net(return_seq=True, T=3).eval(), net(T=3).eval()
    with torch.no_grad():
        assert torch.equal(always(x), asked(x, return_seq=True)) and always(x).shape == (3, 2, 5)
        assert torch.equal(always(x, return_seq=False), asked(x)) and asked(x).shape == (2, 5)


def test_single_step_wants_one_frame():
    model = net()
    functional.set_step_mode(model, "s")
    with pytest.raises(ValueError, match=r"x must be one frame \[N, C, H, W\] in single-step mode, got shape \[4, 2"):
        model(torch.rand(4, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="step_mode must be 'm' or 's', got 'single'"):
        functional.set_step_mode(model, "single")


@pytest.mark.parametrize("name", ["plain_resnet18", "plain_7b_net"])
def test_plain_blocks_are_not_silenced(name):
    """Plain blocks have no shortcut, so weight 0 would make them silent."""
    model = models.create_model(name, zero_init_residual=True)
    assert all(m.last_bn.weight.eq(1).all() for m in model.modules() if isinstance(m, Block))


def test_event_nets_say_what_they_cannot_see():
    with pytest.raises(ValueError, match=r"x must be at least 128 x 128 pixels, got shape \[4, 1, 2, 64, 64\]"):
        models.create_model("plain_7b_net")(torch.rand(4, 1, 2, 64, 64))
    with pytest.raises(ValueError, match="in_channels must differ from the first width, 32"):
        models.create_model("sew_7b_net", in_channels=32)


@pytest.mark.parametrize("name", ["sew_cifar10_net", "sew_resnet18"])
@pytest.mark.parametrize("key", ["T", "in_channels", "num_classes"])
def test_counts_are_named(name, key):
    with pytest.raises(ValueError, match=f"{key} must be at least 1, got 0"):
        models.create_model(name, **{key: 0})
    with pytest.raises(TypeError, match=f"{key} must be an int, got float"):
        models.create_model(name, **{key: 2.0})


@pytest.mark.parametrize(
    "stages, message",
    [
        ({"widths": (8, 8), "blocks": (1,)}, r"one entry per stage, got \[1\] and \[8, 8\]"),
        ({"widths": (), "blocks": ()}, "one entry per stage"),
        ({"widths": (8, 8), "blocks": (1, 0)}, "must be positive"),
    ],
)
def test_bad_stages_of_pooled_networks(stages, message):
    with pytest.raises(ValueError, match=message):
        models.create_model("sew_cifar10_net", **stages)


@pytest.mark.parametrize("key", ["neuron", "last_neuron"])
@pytest.mark.parametrize(
    "value, message",
    [
        (lambda: None, "must make a module each time it is called, got NoneType"),
        (int, "must make a module each time it is called, got int"),
        (surrogate.ATan(), "must be a class, a function or a node, got ATan"),
    ],
    ids=["None", "int", "surrogate"],
)
def test_what_makes_no_neuron_is_named(key, value, message):
    """Without neurons the network would run, but without spikes."""
    with pytest.raises(TypeError, match=f"{key} {message}"):
        net(**{key: value})


@pytest.mark.parametrize("settings, message", [({"T": 4.5}, "T must be an int"), ({"neuron": "LIF"}, "neuron must be")])
def test_bad_types(settings, message):
    with pytest.raises(TypeError, match=message):
        net(**settings)


# Parameters and neuron layers with the published 1x1 stem, then parameters with the 3x3 stem of the paper's text.
POOLED = {
    "sew_7b_net": (130_426, 15, 130_426 + 8 * 2 * 32),
    "spiking_7b_net": (130_426, 15, 130_426 + 8 * 2 * 32),
    "plain_7b_net": (130_426, 15, 130_426 + 8 * 2 * 32),
    "sew_wide_7b_net": (1_192_218, 16, 1_258_778),
}


@pytest.mark.parametrize("name", POOLED)
def test_event_networks(name):
    """All forms are of one size, for no shortcut needs a convolution; their neurons are PLIF (15 and 16 of w)."""
    parameters, layers, parameters_3x3 = POOLED[name]
    with torch.device("meta"):
        net, text = models.create_model(name), models.create_model(name, stem_kernel=3)
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert (count_parameters(net), count_parameters(text)) == (parameters, parameters_3x3)
    assert len(nodes) == layers and {type(n) for n in nodes} == {neuron.ParametricLIFNode}


@pytest.mark.parametrize("name", ["sew_cifar10_net", "spiking_cifar10_net"])
def test_cifar10_network(name):
    """Table S3: 186,858 parameters; a stem and ten blocks with two IF layers each."""
    net = models.create_model(name)
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert count_parameters(net) == 186_858 and len(nodes) == 21 and {type(n) for n in nodes} == {neuron.IFNode}
