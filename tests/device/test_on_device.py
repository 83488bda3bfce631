"""The bindings and networks on the pretended CUDA device, and the checks of that device itself.

Run by tests/test_pretended_device.py in a process that has the device (python tests/device).
"""

import re
from collections import Counter

import pytest
import torch
from torch import nn

from sewsnn import functional, layers, models, neuron
from sewsnn.layers import norm

pytestmark = pytest.mark.cuda


@pytest.fixture
def device(request):
    return request.config.pluginmanager.get_plugin("pretended").pretended


def lif(x):
    """s, v and the gradient of x, on the device of x and its current stream."""
    x = x.detach().requires_grad_()
    s, v = functional.lif_multistep(x, tau=2.0, backend="native")
    (grad,) = torch.autograd.grad(s, x, torch.linspace(-1, 1, s.numel(), device=x.device).view_as(s).to(x.dtype))
    return s.detach(), v.detach(), grad


# ---- what the device finds


def test_memory_begins_as_nan_and_ends_at_a_page():
    assert torch.empty(1000, device="cuda").isnan().all()


def test_a_race_of_two_streams_is_found(device):
    side = torch.cuda.Stream()
    x = torch.rand(4, 64, device="cuda")
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="without waiting for that stream"):
        functional.lif_multistep(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        s, _ = functional.lif_multistep(x)
    with pytest.raises(RuntimeError, match="without waiting for that stream"):
        s.sum()
    torch.cuda.current_stream().wait_stream(side)
    s.sum()
    s.record_stream(torch.cuda.current_stream())
    assert device.problems() == ""


@pytest.mark.parametrize("saved_by", [None, "record_stream", "wait", "synchronize"])
def test_memory_freed_under_another_stream_is_found(saved_by, device):
    side = torch.cuda.Stream()
    x = torch.rand(4, 64, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        functional.lif_multistep(x)
    if saved_by == "record_stream":
        x.record_stream(side)
    elif saved_by == "wait":
        torch.cuda.current_stream().wait_stream(side)
    elif saved_by == "synchronize":
        side.synchronize()
    del x
    assert ("may still use it" in device.problems()) == (saved_by is None)


def test_waiting_can_be_forbidden():
    x = torch.rand(4, 64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    s, _ = functional.lif_multistep(x)
    with pytest.raises(RuntimeError, match="synchronizing"):
        s.sum().item()
    torch.cuda.set_sync_debug_mode("default")


# ---- the bindings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("T", [1, 4, 6, 16, 37])
def test_the_bits_of_the_cpu(dtype, T):
    """With the same arithmetic, s, v and the gradient have the same bits as those of the CPU kernels."""
    x = torch.randn(T, 1003).to(dtype)
    for ours, cpu in zip(lif(x.cuda()), lif(x), strict=True):
        assert torch.equal(ours.cpu(), cpu)


def test_the_bits_of_a_sum():
    """The gradient of a sum is one number for all neurons."""
    x = torch.randn(5, 1000)
    grads = []
    for place in ("cuda", "cpu"):
        leaf = x.to(place).requires_grad_()
        functional.lif_multistep(leaf, backend="native")[0].sum().backward()
        grads.append(leaf.grad.cpu())
    assert torch.equal(*grads)


def test_the_other_device_and_another_stream():
    """cuda:1 while cuda:0 is current, and a stream that is not the default."""
    x = torch.randn(5, 333)
    expected = lif(x)
    one = x.to("cuda:1")
    assert torch.cuda.current_device() == 0
    for ours, cpu in zip(lif(one), expected, strict=True):
        assert ours.device == torch.device("cuda:1") and torch.equal(ours.cpu(), cpu)
    side = torch.cuda.Stream("cuda:1")
    side.wait_stream(torch.cuda.current_stream("cuda:1"))
    with torch.cuda.stream(side):
        results = lif(one)
    assert torch.cuda.current_device() == 0
    side.synchronize()
    for ours, cpu in zip(results, expected, strict=True):
        assert torch.equal(ours.cpu(), cpu)


def test_a_block_on_the_other_device():
    """PLIF, a shortcut, two gradients of the output, and gradients that are one number, on cuda:1."""
    torch.manual_seed(0)
    z, shortcut = torch.randn(6, 2, 8, 5, 5), torch.randint(0, 2, (6, 2, 8, 5, 5)).float()
    layer = layers.BNNeuron(8, neuron=neuron.ParametricLIFNode(), connect_f="ADD")
    results = []
    for place in ("cpu", "cuda:1"):
        bn = layers.BNNeuron(8, neuron=neuron.ParametricLIFNode(), connect_f="ADD").to(place)
        bn.load_state_dict(layer.state_dict())
        z_, shortcut_ = (t.detach().to(place).requires_grad_() for t in (z, shortcut))
        output = layers.bn_neuron(z_, bn, bn.neuron, shortcut_, connect_f="ADD", return_skip=True)
        (output.out.sum() + 2 * output.skip.mean()).backward()
        found = [output.out, output.v, z_.grad, shortcut_.grad, *(p.grad for p in bn.parameters())]
        results.append([t.detach().cpu() for t in (*found, bn.running_mean, bn.running_var, bn.num_batches_tracked)])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=2e-5, atol=2e-6)


def test_tensors_of_two_devices_are_an_error():
    """An address of another device would end the process's CUDA context."""
    x = torch.rand(20, 8, device="cuda")
    s, _, kept = torch.ops.sewsnn.neuron_forward(x, None, None, 1, 2.0, True, 1.0, 0.0, 0, 2.0, True, 1, True)
    options = (1, 2.0, True, 1.0, 0.0, 0, 2.0, True, 1, False, False)
    for wrong in (kept.cpu(), kept.to("cuda:1")):
        with pytest.raises(RuntimeError, match="checkpoints must be on the device of x"):
            torch.ops.sewsnn.neuron_backward(s, None, x, None, None, wrong, *options)
    for place in ("cpu", "cuda:1"):
        bn = layers.BNNeuron(3).to(place)
        with pytest.raises(ValueError, match="must be on the device of z_seq"):
            bn(torch.rand(4, 2, 3, 4, 4, device="cuda"))


def test_statistics_that_processes_share(monkeypatch):
    """SyncBN: with the sums of two equal processes everything equals one process with the batch twice."""
    torch.manual_seed(0)
    z = torch.randn(4, 2, 8, 5, 5, device="cuda")
    grad = torch.randn(4, 2, 8, 5, 5, device="cuda")
    results = []
    for shared in (True, False):
        layer = layers.BNNeuron(8, process_group="world" if shared else None).cuda()
        if shared:
            monkeypatch.setattr(norm, "group_of", lambda _: "two processes")
            monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, group: t.mul_(2))
        else:
            monkeypatch.undo()
        x = (z if shared else torch.cat([z, z], 1)).requires_grad_()
        out = layer(x)
        (g,) = torch.autograd.grad(out, x, grad if shared else torch.cat([grad, grad], 1))
        results.append([out[:, :2], g[:, :2], layer.running_mean, layer.running_var])
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


# ---- networks


def kernels_of(device):
    return Counter(re.search(r"\d([a-z_]+_kernel)I", name).group(1) for name in device.kernels())


@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, 16), ({"neuron": "PLIF"}, 16), ({"residual": "spiking", "pack_spikes": True}, 16)],
    ids=["ADD", "PLIF", "spiking, packed"],
)
def test_a_training_step_of_resnet18(settings, size, device):
    """bf16: finite, a gradient for every parameter, without waiting; and at most 85 launches for IF with ADD."""
    torch.manual_seed(0)
    settings = dict(settings)
    if settings.pop("neuron", None):
        settings["neuron"] = neuron.ParametricLIFNode
    residual = settings.pop("residual", None)
    name = "spiking_resnet18" if residual else "sew_resnet18"
    model = models.create_model(name, num_classes=10, T=4, **settings).cuda().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, size, size, device="cuda").contiguous(memory_format=torch.channels_last)
    target = torch.tensor([1, 2], device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        device.kernels()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
        launches = kernels_of(device)
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.zero_grad()
    if not settings and not residual:
        assert launches.total() <= 85, launches
        assert launches["bn_statistics_kernel"] == 20 and launches["bn_reduce_kernel"] == 19
