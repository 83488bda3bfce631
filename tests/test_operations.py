"""Counts of parameters, neurons, MACs and SynOps, compared with counts by hand, by brute force and from the paper."""

import contextlib
import copy
import json

import pytest
import torch
from cases import current
from torch import nn

from sewsnn import models, neuron
from sewsnn.analysis import count_operations, firing_rates
from sewsnn.models.network import count_parameters

pytestmark = pytest.mark.usefixtures("one_thread")


class Still(nn.Module):
    """A chain of modules over time. The first convolution reads the image once; its output is shown T times."""

    def __init__(self, T):
        super().__init__()
        self.T = T
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.sn = neuron.IFNode()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)

    def forward(self, x):
        z = self.stem(x)
        s_seq = self.sn(z.expand(self.T, *z.shape))
        return self.conv(s_seq.flatten(0, 1))


def spikes_at(*positions, sizes):
    x = torch.zeros(sizes)
    for position in positions:
        x[position] = 1
    return x


def layer(model, x, name=""):
    (found,) = [found for found in count_operations(model, x).layers if found.name == name]
    return found


@pytest.mark.parametrize(
    "settings, position, fan_out",
    [
        ({"padding": 1}, (2, 2), 9),  # in the middle
        ({"padding": 1}, (0, 2), 6),  # at a border
        ({"padding": 1}, (0, 0), 4),  # in a corner
        ({}, (0, 0), 1),
        ({"padding": 1, "stride": 2}, (1, 1), 4),  # windows around 0 and 2, both ways
        ({"padding": 1, "stride": 2}, (2, 2), 1),
        ({"padding": 1, "stride": 2}, (1, 2), 2),
        ({"stride": 3}, (4, 0), 0),  # no window reaches the last row
    ],
)
def test_fan_out_by_hand(settings, position, fan_out):
    """One spike in a 5x5 image, a 3x3 kernel, 7 output channels."""
    x = spikes_at((0, 0, *position), sizes=(1, 1, 5, 5))
    found = layer(nn.Conv2d(1, 7, 3, **settings), x)
    assert found.synops == 7 * fan_out and found.spike_input
    assert found.input_rate == found.active_inputs == 1 / 25


def test_groups_and_sums_of_spikes_by_hand():
    """With two groups, half of the 6 output channels read each input. An input of 3 counts three times."""
    x = 3 * spikes_at((0, 1, 1, 1), sizes=(1, 4, 3, 3)) + spikes_at((0, 3, 0, 0), sizes=(1, 4, 3, 3))
    found = layer(nn.Conv2d(4, 6, 3, padding=1, groups=2), x)
    assert found.synops == 3 * 9 * 3 + 4 * 3
    assert found.input_rate == 4 / 36 and found.active_inputs == 2 / 36
    assert found.macs == 6 * 9 * 2 * 9 and found.runs == 1 and found.parameters == 6 * 2 * 9 + 6


def test_linear_by_hand():
    found = layer(nn.Linear(4, 5), torch.tensor([[0.0, 1, 0, 2], [0, 0, 0, 0]]))
    assert found.synops == 3 * 5 / 2 and found.macs == 20 and found.parameters == 25 and found.input_rate == 3 / 8


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 2, "stride": 2},
        {"padding": 3, "dilation": 2, "stride": 3},
        {"padding": "same", "dilation": 3},
        {"padding": "same", "kernel_size": 4, "dilation": 2},
        {"padding": "valid"},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": 2, "padding_mode": "reflect", "stride": 2},
        {"padding": 1, "padding_mode": "replicate", "groups": 2},
    ],
    ids=str,
)
def test_every_spike_in_every_window_is_counted(dims, settings):
    """Compares with a convolution with weights of 1: each output is the number of spikes in its window."""
    conv_of = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    conv = conv_of(4, 6, **{"kernel_size": 3, "bias": False, **settings})
    x = (current((2, 4, *(9, 8, 7)[:dims]), seed=dims) > 1).float()
    ones = copy.deepcopy(conv).double()
    nn.init.ones_(ones.weight)
    expected = ones(x.double())
    found = layer(conv, x)
    assert found.synops == expected.sum().item() / 2 > 0
    assert found.macs == expected[0].numel() * conv.weight[0].numel()


def test_without_borders_it_is_rate_times_macs():
    """For a 1x1 convolution, which has no border, the count equals the usual definition."""
    found = layer(nn.Conv2d(4, 6, 1), (current((5, 4, 6, 6)) > 1).float())
    assert found.synops == pytest.approx(found.input_rate * found.macs, rel=1e-12) and 0 < found.input_rate < 1


def test_how_often_a_layer_runs():
    """A still image is convolved once, its spikes T times; the layer that reads the image does MACs."""
    torch.manual_seed(0)
    model, x = Still(T=5), torch.rand(3, 1, 4, 4) * 4
    found = count_operations(model, x)
    stem, sn, conv = found.layers
    assert (stem.runs, sn.runs, conv.runs) == (1, 5, 5) and found.T == 5 and found.images == 3
    assert (stem.macs, sn.neurons, conv.macs) == (2 * 16 * 9, 2 * 16, 3 * 16 * 18)
    assert stem.spike_input is False and stem.synops is None and conv.spike_input and conv.synops > 0
    assert found.macs == stem.macs + conv.macs and found.macs_per_image == stem.macs + 5 * conv.macs
    assert found.real_macs_per_image == stem.macs and found.synops == conv.synops
    assert found.energy_pj == pytest.approx(4.6 * stem.macs + 0.9 * conv.synops)
    # every input of conv is a spike; inputs at borders have fewer readers
    assert conv.synops <= conv.input_rate * conv.runs * conv.macs


def test_batches_are_averaged():
    model, images = Still(T=2), torch.rand(6, 1, 4, 4) * 4
    whole, parts = count_operations(model, images), count_operations(model, iter(images.split(2)))
    assert whole == parts and whole.synops > 0


def test_single_steps_count_one_by_one():
    """T calls with one frame each: each counts as an image of one time-step, and the potential stays between calls."""
    torch.manual_seed(0)
    net = models.create_model("sew_cifar10_net", neuron=neuron.LIFNode)
    x_seq = torch.rand(3, 2, 3, 32, 32) * 4
    whole = count_operations(net, x_seq)
    for module in net.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "s"
    steps = count_operations(net, list(x_seq))
    assert (whole.T, whole.images, steps.T, steps.images) == (3, 2, 1, 6)
    spikes = [[row.synops for row in found.layers if row.spike_input and row.name != "fc"] for found in (whole, steps)]
    assert spikes[0] == pytest.approx([3 * synops for synops in spikes[1]], rel=1e-12) and len(spikes[0]) == 20
    assert steps.macs == whole.macs
    # the classifier reads the mean over time, or each step's spikes
    assert (whole.layers[-1].spike_input, steps.layers[-1].spike_input) == (False, True)


@pytest.mark.parametrize("look", [count_operations, lambda model, x: firing_rates(model, [x])], ids=["count", "rates"])
def test_the_model_is_left_as_it_was(look):
    """Modes of single modules, states and hooks are restored, also after an error."""
    torch.manual_seed(0)
    model = Still(T=2).train()
    model.conv.eval()
    model.sn.keep_state = True
    model(torch.rand(2, 1, 4, 4))
    v = model.sn.v
    for x, error in ((torch.rand(1, 1, 4, 4), None), (torch.rand(1, 2, 4, 4), RuntimeError)):
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            look(model, x)
        assert model.training and model.stem.training and not model.conv.training
        assert model.sn.v is v and not any(m._forward_hooks for m in model.modules())


def test_shared_parameters_are_counted_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_operations(model, torch.rand(2, 4)).parameters == count_parameters(model) == 24


def test_report():
    found = count_operations(Still(T=2), torch.rand(2, 1, 4, 4) * 4)
    lines = str(found).splitlines()
    assert len(lines) == 1 + 1 + 3 + 1 + 1 and "real-valued" in lines[2] and lines[-1].startswith("total")
    assert f"{found.macs:,}" in lines[-1] and "T = 2" in lines[-1]
    again = json.loads(json.dumps(found.to_dict()))
    assert again["macs"] == found.macs and [row["name"] for row in again["layers"]] == ["stem", "sn", "conv"]


@pytest.mark.parametrize(
    "model, batches, error, message",
    [
        ("net", torch.rand(1, 1), TypeError, "model must be a module, got str"),
        (nn.Linear(1, 1), [], ValueError, "batches must hold at least one"),
        (nn.Linear(1, 1), torch.rand(0, 1), ValueError, r"must not be empty, got shape \[0, 1\]"),
        (nn.Linear(1, 1), ["x"], TypeError, "a batch must be a tensor, got str"),
    ],
)
def test_errors(model, batches, error, message):
    with pytest.raises(error, match=message):
        count_operations(model, batches)


# Neurons per image and time-step of SEW ResNet, in units of 10 000; MACs of torchvision's networks, which it reports in
# giga (GFLOPs in its tables of weights: 1.81, 3.66, 4.09, 7.80, 11.51).
IMAGENET = {18: (248, 1.81), 34: (374, 3.66), 50: (1111, 4.09), 101: (1623, 7.80), 152: (2255, 11.51)}


@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_networks(depth):
    """On the meta device: the sizes equal those of the paper's and torchvision's networks."""
    neurons, giga = IMAGENET[depth]
    with torch.device("meta"):
        model = models.create_model(f"sew_resnet{depth}")
        found = count_operations(model, torch.empty(1, 3, 224, 224))
    assert found.parameters == count_parameters(model)
    assert round(found.neurons / 1e4) == neurons and round(found.macs / 1e9, 2) == giga
    by_name = {row.name: row for row in found.layers}
    assert by_name["sn1"].neurons == 64 * 112 * 112 and by_name["conv1"].runs == 1 and by_name["fc"].runs == 1
    assert all(row.runs == 4 for row in found.layers if row.neurons or (row.macs and row.name not in ("conv1", "fc")))
    assert found.images == 0 and found.synops is None and found.energy_pj is None


def test_shapes_alone_give_what_a_run_gives():
    torch.manual_seed(0)
    net = models.create_model("sew_7b_net", T=3)
    run = count_operations(net, torch.rand(2, 2, 128, 128))
    with torch.device("meta"):
        shapes = count_operations(copy.deepcopy(net).to("meta"), torch.empty(2, 2, 128, 128))
    names = ("parameters", "neurons", "macs", "T", "macs_per_image", "neuron_layers")
    assert [getattr(run, n) for n in names] == [getattr(shapes, n) for n in names]


@pytest.mark.parametrize("connect_f", ["ADD", "AND", "IAND"])
@pytest.mark.parametrize("pack_spikes", [False, True])
def test_blocks_read_spikes(connect_f, pack_spikes, device):
    """With real-valued images the first convolution and the classifier do MACs, all others SynOps. With ADD
    some inputs are sums of spikes."""
    torch.manual_seed(0)
    settings = {"blocks": [2, 1], "widths": [4, 8], "num_classes": 5, "stem": "small", "connect_f": connect_f}
    settings["zero_init_residual"] = connect_f == "AND"  # identities: with AND an untrained network is silent
    net = models.create_model("sew_resnet", pack_spikes=pack_spikes, **settings).to(device)
    found = count_operations(net, current((3, 3, 8, 8), device=device, scale=3.0))
    assert [row.name for row in found.layers if row.spike_input is False] == ["conv1", "fc"]
    assert sum(row.spike_input is True for row in found.layers) == 7
    sums = [row.input_rate > row.active_inputs for row in found.layers if row.spike_input]
    assert any(sums) == (connect_f == "ADD")


def test_meta_networks_run(recwarn):
    """Forward and backward run with the fake kernels and give no warning about a slow backend."""
    with torch.device("meta"):
        net = models.create_model("sew_resnet", blocks=[1, 1], widths=[8, 8], neuron=neuron.ParametricLIFNode)
        net(torch.empty(2, 3, 32, 32)).sum().backward()
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in net.parameters()) and not recwarn.list
