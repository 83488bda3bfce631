"""Packed spikes: the neuron's kernel writes bits, and the backward of the convolution reads them."""

import pytest
import torch
from torch import nn

from sewsnn import layers, models, neuron
from sewsnn.ops import bn as native

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def spikes(z, **settings):
    return layers.bn_neuron(z, None, neuron.IFNode(store_v=False), pack_spikes=True, **settings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(4, 2, 8, 3, 5), (1, 1, 8, 1, 1), (17, 3, 16, 7, 7), (2, 1, 3, 8, 9), (3, 2, 64, 9, 9)]
)
@pytest.mark.parametrize("channels_last", (False, True))
def test_bits_are_the_spikes(dtype, shape, channels_last, device):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype) + 0.3
    if channels_last:
        z = z.movedim(2, -1).contiguous().movedim(-1, 2)
    output = spikes(z)
    assert output.bits.shape == (z.numel() // 8,) and output.bits.dtype == torch.uint8
    in_memory = output.out.as_strided((z.numel(),), (1,)).float().cpu().view(-1, 8)
    expected = (in_memory * 2.0 ** torch.arange(8)).sum(1).to(torch.uint8)
    assert 0 < in_memory.mean() < 1
    assert torch.equal(output.bits.cpu(), expected)
    again = native.unpack_spikes(output.bits, output.out.shape, output.out.stride(), dtype)
    assert torch.equal(again, output.out) and again.stride() == output.out.stride()


def test_only_spikes_are_packed(device):
    """Not packed: sums of a connection, sizes that are not a multiple of 8, and results of the modules."""
    z = torch.rand(4, 2, 8, 3, 5, device=device)
    assert spikes(z).bits is not None
    assert spikes(z, shortcut=z, connect_f="ADD").bits is None
    assert spikes(z, shortcut=z, connect_f="ADD", connect_before=True).bits is not None
    assert spikes(z, fused=False).bits is None
    assert spikes(torch.rand(4, 1, 3, 3, 3, device=device)).bits is None


@pytest.mark.parametrize("residual", ("sew", "spiking", "plain"))
@pytest.mark.parametrize("bottleneck", (False, True))
def test_the_same_gradients_from_less_memory(residual, bottleneck, device):
    results, kept = [], []
    for pack_spikes in (False, True):
        torch.manual_seed(0)
        sizes = {"blocks": [1, 2], "widths": [8, 16], "stem": "small", "bottleneck": bottleneck, "num_classes": 5}
        model = models.create_model("sew_resnet", residual=residual, pack_spikes=pack_spikes, **sizes)
        model.to(device).double().to(memory_format=torch.channels_last)
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64).to(device, memory_format=torch.channels_last)
        found = {}

        def pack(t, found=found):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            logits = model(x)
        logits.square().sum().backward()
        results.append((logits.detach(), [p.grad for p in model.parameters()]))
        kept.append(sum(found.values()))
    assert torch.equal(results[0][0], results[1][0])
    for actual, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    inner = 4 * 2 * (8 * 64 + 2 * 16 * 16) * (2 if bottleneck else 1)  # at least the spikes inside blocks
    assert kept[0] - kept[1] >= inner * (8 - 1 / 8)


def test_no_bits_without_gradients(device):
    model = models.create_model("sew_resnet", blocks=[1], widths=[8], stem="small", pack_spikes=True).to(device)
    with torch.no_grad():
        model(torch.rand(2, 3, 8, 8, device=device))
    a = model.layer1[0]._layer(1, native.Output(torch.rand(4, 2, 8, 8, 8, device=device), None, None, None))
    assert a.bits is None


def test_bias_stride_groups_autocast(device):
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2).to(device)
    z = (torch.rand(4, 2, 8, 8, 8, device=device) * 2).requires_grad_()
    for autocast in (False, True):
        grads = []
        for pack in (False, True):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
                output = layers.bn_neuron(z, None, neuron.IFNode(store_v=False), pack_spikes=pack)
                out = layers.conv_over_time(conv, output)
            assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
            grads.append(torch.autograd.grad(out.float().square().sum(), [z, conv.weight, conv.bias]))
        for actual, expected in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected)


def test_other_convolutions_run_as_they_are(device):
    """Cases: hooks, circular padding, a class of the user."""

    class Own(nn.Conv2d):
        pass

    hooked = nn.Conv2d(8, 8, 3)
    seen = []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    output = spikes(torch.rand(4, 2, 8, 8, 8, device=device))
    for conv in (hooked, nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), Own(8, 8, 3)):
        out = layers.conv_over_time(conv.to(device), output)
        torch.testing.assert_close(out, conv(output.out.flatten(0, 1)).unflatten(0, (4, 2)))
    assert seen == [1, 1]


@pytest.mark.parametrize(
    "sizes, strides, message",
    [([4, 8], [8], "a stride for each"), ([4, 9], [9, 1], "dense tensor"), ([4, 8], [9, 1], "dense tensor")],
)
def test_bad_sizes(sizes, strides, message):
    with pytest.raises(RuntimeError, match=message):
        native.unpack_spikes(torch.zeros(4, dtype=torch.uint8), sizes, strides, torch.float32)


def test_padding_by_name(device):
    output = spikes(torch.rand(2, 2, 8, 4, 4, device=device) + 0.5)
    conv = nn.Conv2d(8, 4, 3, padding="same").to(device)
    conv_z = layers.conv_over_time(conv, output)
    conv_z.sum().backward()
    assert output.bits is not None and conv_z.shape == (2, 2, 4, 4, 4) and conv.weight.grad.abs().sum() > 0
