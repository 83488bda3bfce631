"""Hooks and monitors of a converted model see the same as in SpikingJelly; wrong activation checkpointing raises."""

import copy
import io

import pytest
import torch
from sj_cases import V2
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from sewsnn.convert import from_spikingjelly

OPTIONS = {"spiking_neuron": neuron.IFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True}
NETS = {
    **{f"sew18 {cnf}": lambda cnf=cnf: sew_resnet.sew_resnet18(cnf=cnf, **OPTIONS) for cnf in ("ADD", "AND", "IAND")},
    **{f"sew50 {cnf}": lambda cnf=cnf: sew_resnet.sew_resnet50(cnf=cnf, **OPTIONS) for cnf in ("ADD", "IAND")},
    "spiking18": lambda: spiking_resnet.spiking_resnet18(**OPTIONS),
    "spiking50": lambda: spiking_resnet.spiking_resnet50(**OPTIONS),
}


def build(name):
    torch.manual_seed(0)
    net = NETS[name]()
    functional.set_step_mode(net, "m")
    return net.eval()


def calls(net, watch):
    """Names of the watched modules in the order of their calls."""
    seen, hooks = [], []
    for name, module in net.named_modules():
        if name and watch(name, module):
            hooks.append(module.register_forward_hook(lambda *_, name=name: seen.append(name)))
    with torch.no_grad():
        net(torch.rand(2, 1, 3, 32, 32))
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return seen


WATCHED = {
    "all": lambda name, module: True,
    "neurons": lambda name, module: isinstance(module, neuron.BaseNode),
    "last neuron, convolution beside": lambda name, module: name.endswith((".sn2", ".sn3", "downsample.0")),
    "last norm, norm beside": lambda name, module: name.endswith((".bn2", ".bn3", "downsample.1")),
    "last norm, all beside": lambda name, module: name.endswith((".bn2", ".bn3", "downsample")),
}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_watched_modules_are_called_in_spikingjellys_order(name, fuse):
    net = build(name)
    expected = {watched: calls(net, watch) for watched, watch in WATCHED.items()}
    from_spikingjelly(net, fuse=fuse)
    for watched, watch in WATCHED.items():
        assert calls(net, watch) == expected[watched], watched


def test_records_of_a_monitor_belong_to_its_layers():
    def rates(net):
        found = monitor.OutputMonitor(net, neuron.BaseNode, lambda s: float(s.mean()))
        with torch.no_grad():
            net(torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        functional.reset_net(net)
        found.remove_hooks()
        return dict(zip(found.monitored_layers, found.records, strict=True))

    net = build("sew18 ADD")
    expected = rates(net)
    from_spikingjelly(net, fuse=False)
    assert rates(net) == expected
    from_spikingjelly(net)
    assert list(rates(net)) == list(expected)


@pytest.mark.skipif(not V2, reason="0.0.0.0.14 has no op_counter")
def test_counters_of_operators_count_what_they_did():
    from spikingjelly.activation_based import op_counter
    from torch.utils.flop_counter import FlopCounterMode

    def counted(net):
        found = []
        for name in ("FlopCounter", "MACCounter", "ACCounter", "MemoryAccessCounter"):
            counter = getattr(op_counter, name)()
            with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
                net(torch.ones(2, 1, 3, 32, 32))
            functional.reset_net(net)
            found.append(counter.get_total())
        with FlopCounterMode(display=False) as flops:
            net(torch.ones(2, 1, 3, 32, 32))
        functional.reset_net(net)
        return [*found, flops.get_total_flops()]

    net = build("sew18 ADD")
    expected = counted(net)
    from_spikingjelly(net)
    assert counted(net) == expected and min(expected) > 0


NODES = {"IF": neuron.IFNode, "LIF": neuron.LIFNode, "PLIF": neuron.ParametricLIFNode}


def small(kind, fuse, step_mode="m"):
    torch.manual_seed(1)
    net = nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3), NODES[kind]()).double()
    functional.set_step_mode(net, step_mode)
    from_spikingjelly(net, fuse=fuse)
    return net


def gradients(net, x, calls, wrap):
    net.zero_grad()
    loss = sum((wrap(x * k) * k).sum() for k in range(1, calls + 1))
    loss.backward()
    functional.reset_net(net)
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("kind", NODES)
def test_activation_checkpointing_gives_right_gradients_or_an_error(kind, fuse, reentrant):
    x = torch.randn(3, 2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for step_mode in "ms":
        net = small(kind, fuse, step_mode)
        z = x if step_mode == "m" else x[0]

        def reset_first(z, net=net):
            functional.reset_net(net)
            return net(z)

        for calls in (1, 2):
            expected = gradients(net, z, calls, reset_first)
            found = gradients(net, z, calls, lambda z, body=reset_first: checkpoint(body, z, use_reentrant=reentrant))
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)
            with pytest.raises(RuntimeError, match="reset_net"):
                gradients(net, z, calls, lambda z, net=net: checkpoint(net, z, use_reentrant=reentrant))
            functional.reset_net(net)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["v_threshold", "v_reset", "tau"])
def test_a_parameter_in_a_settings_place_has_the_gradient_that_spikingjelly_gives(name, when):
    """SpikingJelly's own code runs, and the report says so. (Some of its kernels accept only the number.)"""

    def gradient(convert):
        torch.manual_seed(0)
        net = nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3), neuron.LIFNode())
        functional.set_step_mode(net, "m")
        report = from_spikingjelly(net) if convert and when == "after" else None
        value = float(getattr(net[2], name))
        delattr(net[2], name)
        setattr(net[2], name, nn.Parameter(torch.tensor(value)))
        if convert and when == "before":
            report = from_spikingjelly(net)
            assert any(name in entry.reason for entry in report.left)
        net(3 * torch.randn(4, 2, 2, 6, 6)).sum().backward()
        return getattr(net[2], name).grad

    found, expected = gradient(True), gradient(False)
    assert (found is None) == (expected is None)
    if found is not None:
        torch.testing.assert_close(found, expected)


def test_nothing_of_a_transform_that_has_ended_is_kept():
    net = small("LIF", True).eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, x):
        functional.reset_net(net)
        return functional_call(net, parameters, (x,)).sum()

    vmap(grad(loss), in_dims=(None, 0))(parameters, torch.randn(3, 2, 1, 2, 6, 6, dtype=torch.float64))
    copy.deepcopy(net)
    torch.save(net.state_dict(), io.BytesIO())
    net.float()
    assert repr(net[2].v) and all(p.dtype == torch.float32 for p in net.parameters())
    functional.reset_net(net)
    net(torch.randn(2, 1, 2, 6, 6))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.sn = layer.Conv2d(3, 3, 3), layer.BatchNorm2d(3), neuron.IFNode()

    def forward(self, x):
        return self.sn(self.bn(self.conv(x)))


def test_the_report_says_why_a_neuron_runs_alone():
    shared = neuron.IFNode()
    net = nn.Sequential(
        nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3), neuron.IFNode()),
        Own(),
        nn.Sequential(layer.Conv2d(3, 3, 3), neuron.IFNode()),
        nn.Sequential(neuron.IFNode()),
        nn.Sequential(nn.BatchNorm3d(3), neuron.IFNode()),
        nn.Sequential(layer.BatchNorm2d(3), shared, layer.BatchNorm2d(3), shared),
    )
    functional.set_step_mode(net, "m")
    report = from_spikingjelly(net)
    reasons = {entry.name: entry.reason for entry in report.replaced}
    for name, words in {
        "0.2": "",
        "1.sn": "unknown before the first batch",
        "2.1": "the module before it is not a batch norm, but Conv2d",
        "3.0": "unknown before the first batch",
        "4.1": "",
        "5.1": "stands in more than one place",
    }.items():
        assert words in reasons[name] and bool(words) == bool(reasons[name]), name
        assert f"alone: {reasons[name]}" in str(report) or not words
    assert {entry.reason for entry in from_spikingjelly(copy.deepcopy(build("sew18 ADD")), fuse=False).replaced} == {
        "fuse=False"
    }
    single = nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3), neuron.IFNode(step_mode="s"))
    assert "not now: step_mode is 's'" in str(from_spikingjelly(single))
    assert from_spikingjelly(nn.Sequential(surrogate.ATan(), layer.Dropout(0.5), layer.SynapseFilter())).left == []


def test_the_pages_snippet_runs():
    import re
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "spikingjelly.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(code, names)
    assert names["s_seq"].shape[:2] == (4, 2)


@pytest.mark.parametrize("how", ["global hooks", "a forward of its own"])
def test_other_ways_to_watch_see_spikingjellys_order(how):
    def order(net):
        names, seen = {module: name for name, module in net.named_modules()}, []
        if how == "global hooks":
            hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(names[module]))
        else:
            for module, name in names.items():
                if name.endswith((".sn2", "downsample", "downsample_sn")):

                    def forward(x, name=name, body=module.forward):
                        seen.append(name)
                        return body(x)

                    module.forward = forward
        with torch.no_grad():
            net(torch.rand(2, 1, 3, 32, 32))
        functional.reset_net(net)
        if how == "global hooks":
            hook.remove()
        return [name for name in seen if not name.endswith("surrogate_function")]

    net = build("sew18 ADD")
    converted = copy.deepcopy(net)
    from_spikingjelly(converted)
    assert order(converted) == order(net)


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_no_sequence_of_potentials_of_an_ended_transform_is_kept(step_mode):
    net = small("LIF", True, step_mode).eval()
    net[2].store_v_seq = True
    x = torch.randn(3, 2, 1, 2, 6, 6, dtype=torch.float64)

    def loss(x):
        functional.reset_net(net)
        return net(x if step_mode == "m" else x[0]).sum()

    for use in (copy.deepcopy, lambda net: torch.save(net, io.BytesIO()), functional.detach_net, nn.Module.float):
        net.double()
        vmap(grad(loss))(x)
        use(net)
        assert not torch._C._functorch.is_functorch_wrapped_tensor(net[2].v_seq or torch.empty(0))


def test_the_report_claims_no_fusion_with_another_norm_than_it_can_fuse():
    net = sew_resnet.sew_resnet18(cnf="ADD", norm_layer=lambda channels: layer.GroupNorm(1, channels), **OPTIONS)
    report = from_spikingjelly(net)
    assert report.fused == 0 and all("no batch norm" in entry.reason for entry in report.replaced)
