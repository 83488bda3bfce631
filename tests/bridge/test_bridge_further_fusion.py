"""QIF, CUBALIF and ILIF nodes in one op with batch norm."""

import pytest
import torch
from sj_cases import FURTHER, assert_same_step, converted, current, make, step
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import nn

every_node = pytest.mark.parametrize("kind", FURTHER)
cubalif = pytest.mark.skipif("CUBALIF" not in FURTHER, reason="new in 2.0")
ilif = pytest.mark.skipif("ILIF" not in FURTHER, reason="new in 2.0")
SHAPE = (4, 3, 2, 8, 8)


def convolution(kind, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 5, 3, padding=1),
        layer.BatchNorm2d(5),
        make(kind, **settings),
        layer.MaxPool2d(2),
        layer.SeqToANNContainer(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)),
        make(kind, **settings),
    )
    functional.set_step_mode(net, "m")
    for module in net[4]:
        module.step_mode = "s"
    return net


def states(net):
    return [value for node in (net[2], net[5]) for name, value in node.named_memories() if name != "v_seq"]


@every_node
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_sequential(kind, training, v_reset, fused):
    """Compares outputs, gradients and running statistics in double, where rounding changes no spike."""
    net = convolution(kind, **({} if kind == "ILIF" else {"v_reset": v_reset})).double().train(training)
    after, report = converted(net)
    assert [entry.fused_with for entry in report.replaced] == ["1", "4.1"] and report.fused == 2
    assert f"{kind}Node" in str(report) and "with 4.1" in str(report)
    x = current(*SHAPE, dtype=torch.float64)
    for _ in range(2):
        assert_same_step(step(after, x), step(net, x), 1e-10)
    assert len(fused) == 4


@every_node
def test_inference_in_chunks(kind, fused):
    """Without reset the calls continue; the op leaves every state."""
    net = convolution(kind).double().eval()
    after, _ = converted(net)
    with torch.no_grad():
        for chunk in current(12, *SHAPE[1:], dtype=torch.float64).chunk(3):
            assert torch.equal(net(chunk), after(chunk))
            torch.testing.assert_close(states(after), states(net))
    assert len(fused) == 2


@every_node
def test_truncated_backpropagation_over_calls(kind):
    net = convolution(kind).double()
    after, _ = converted(net)
    for model in (net, after):
        for chunk in current(8, *SHAPE[1:], dtype=torch.float64).chunk(2):
            model(chunk).square().sum().backward()
            functional.detach_net(model)
    for a, b in zip(after.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@every_node
def test_a_forgotten_reset(kind):
    after, _ = converted(convolution(kind))
    x = current(*SHAPE)
    after(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"reset_net\(net\) or detach_net\(net\).*fuse=False"):
        after(x).sum().backward()
    functional.reset_net(after)
    after(x).sum().backward()


@cubalif
@pytest.mark.parametrize("name", ["v", "c"])
def test_training_through_a_state(name):
    """A state in the loss raises an error instead of a silent zero; with fuse=False the gradient is right."""
    net = nn.Sequential(layer.BatchNorm2d(2, step_mode="m"), make("CUBALIF", step_mode="m")).double()
    x = current(*SHAPE, dtype=torch.float64)
    net(x)
    expected = torch.autograd.grad(getattr(net[1], name).square().sum(), net[0].weight)
    functional.reset_net(net)
    after, _ = converted(net)
    after(x)
    with pytest.raises(RuntimeError, match=f"the state {name} that .* no graph of {name}.*fuse=False"):
        getattr(after[1], name).square().sum().backward()
    after, report = converted(net, fuse=False)
    assert report.fused == 0 and type(after) is nn.Sequential and "alone: fuse=False" in str(report)
    after(x)
    found = torch.autograd.grad(getattr(after[1], name).square().sum(), after[0].weight)
    torch.testing.assert_close(found, expected)


@cubalif
def test_a_current_that_is_not_at_rest(fused):
    net = nn.Sequential(layer.BatchNorm2d(2, step_mode="m"), make("CUBALIF", step_mode="m")).double()
    net[1].c = 0.5
    after, report = converted(net)
    assert report.replaced[0].reason == "c is not at rest: call reset_net"
    assert "c_decay=0.5, v_decay=0.75" in report.replaced[0].settings
    x = current(*SHAPE, dtype=torch.float64)
    assert torch.equal(after(x), net(x)) and torch.equal(after[1].c, net[1].c) and not fused
    functional.reset_net(after)
    after(x)
    assert len(fused) == 1


@every_node
def test_autocast(kind, fused):
    net = convolution(kind)
    after, _ = converted(net)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = after(current(*SHAPE)), net(current(*SHAPE))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and len(fused) == 2
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in after.parameters())
    assert all(state.dtype == torch.float32 for state in states(after))
    assert float(y.detach().float().mean()) == pytest.approx(float(expected.detach().float().mean()), abs=0.05)


@ilif
@pytest.mark.parametrize(
    "build, cnf",
    [(sew_resnet.sew_resnet18, cnf) for cnf in ("ADD", "AND", "IAND")] + [(sew_resnet.sew_resnet50, "IAND")],
)
def test_sew_resnet_of_counts(build, cnf, fused):
    """AND and IAND of counts are SpikingJelly's, after the op."""
    torch.manual_seed(0)
    net = build(cnf=cnf, spiking_neuron=neuron.ILIFNode, num_classes=5).double()
    functional.set_step_mode(net, "m")
    after, report = converted(net)
    assert report.fused == len(report.replaced) == len([m for m in net.modules() if isinstance(m, neuron.ILIFNode)])
    assert any(", ADD" in entry.fused_with for entry in report.replaced) == (cnf == "ADD")
    assert not any("AND" in entry.fused_with for entry in report.replaced)
    x = current(3, 2, 3, 32, 32, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-7)
    assert len(fused) == report.fused and (set(fused) == {0}) == (cnf != "ADD")


@pytest.mark.parametrize("build", [sew_resnet.sew_resnet18, sew_resnet.sew_resnet50])
def test_iand_of_a_block_with_hooks(build):
    """A hook on the downsample keeps the connection outside the op."""
    torch.manual_seed(0)
    net = build(cnf="IAND", spiking_neuron=neuron.IFNode, num_classes=5).double()
    functional.set_step_mode(net, "m")
    after, _ = converted(net)
    after.layer2[0].downsample_sn.register_forward_hook(lambda *_: None)
    x = current(3, 2, 3, 32, 32, dtype=torch.float64)
    seen = []
    for model in (net, after):
        model.layer2[0].register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
        model(x)
    assert torch.equal(*seen) and seen[0].mean() > 0.01


@cubalif
@pytest.mark.parametrize("cnf", ["AND", None])
def test_resnets_of_two_states(cnf, fused):
    torch.manual_seed(0)
    build, options = (spiking_resnet.spiking_resnet18, {}) if cnf is None else (sew_resnet.sew_resnet18, {"cnf": cnf})
    net = build(spiking_neuron=neuron.CUBALIFNode, num_classes=5, **options).double()
    functional.set_step_mode(net, "m")
    after, report = converted(net)
    assert report.fused == len(report.replaced)
    x = current(3, 2, 3, 32, 32, dtype=torch.float64)
    assert_same_step(step(after, x), step(net, x), 1e-7)
    assert len(fused) == report.fused and len(set(fused)) == 2


def test_containers_of_one_layer_are_undone():
    """``fuse=False`` undoes the fusion and keeps the converted nodes."""
    from sewsnn.convert import from_spikingjelly

    net = convolution("QIF")
    after, _ = converted(net)
    assert type(after[1]) is not layer.BatchNorm2d
    from_spikingjelly(after, fuse=False)
    assert type(after[1]) is layer.BatchNorm2d and type(after[2]) is not neuron.QIFNode
    assert torch.equal(after(current(*SHAPE)), net(current(*SHAPE)))
