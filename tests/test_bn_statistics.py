"""Batch statistics and running statistics of the fused batch norm: their accuracy, and when they change."""

import pytest
import torch
from bn_cases import norm
from cases import EPS, current
from torch import nn

from sewsnn import neuron
from sewsnn.layers import BNNeuron, bn_neuron
from sewsnn.ops import bn as native


def moments(z, T=0):
    """Mean and variance by the op, and by torch in float64."""
    exact = z.double().flatten(0, 1) if T == 0 else z.double()
    var, mean = torch.var_mean(exact, [0, *range(2, exact.dim())], unbiased=False)
    statistics, count = native.moments(z, T)
    assert count == exact.numel() / exact.shape[1]
    return statistics.double(), mean, var


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1000.0, 1.0), (-3e4, 0.5), (1e-20, 1e-15), (5.0, 0.0)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_accuracy(order, mean, std, device):
    """A mean far larger than the deviation costs nothing: sums are of z - k, k being one of the channel's values.

    z - k is exact where |mean| >> std and has one rounding elsewhere; its square one more; at most 16 are added in
    float32, the rest in float64. So the mean is off by 16 + 2 roundings of E|z - k|, the variance of E(z - k)^2.
    """
    z = current((10 * 4, 5, 9, 9), scale=std, mean=mean, device=device).contiguous(memory_format=order)
    k = z[0, :, 0, 0].double()
    away = z.double() - k.view(-1, 1, 1)
    over = (0, 2, 3)
    statistics, exact_mean, exact_var = moments(z.unflatten(0, (10, 4)))
    eps = EPS[torch.float32] / 2  # of one rounding
    assert ((statistics[0] - exact_mean).abs() <= eps * (18 * away.abs().mean(over) + exact_mean.abs())).all()
    assert ((statistics[1] - exact_var).abs() <= eps * (36 * away.square().mean(over) + exact_var)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_and_still_images(dtype, device):
    z = current((6, 3, 7, 5), dtype, device)
    for T, x in ((4, z), (0, z.unflatten(0, (3, 2)))):
        statistics, mean, var = moments(x, T)
        eps = 64 * EPS[torch.float64 if dtype == torch.float64 else torch.float32]
        torch.testing.assert_close(statistics, torch.stack([mean, var]), rtol=eps, atol=eps)


def test_a_constant_channel_has_no_variance(device):
    z = current((1, 1, 3, 1, 1), device=device).expand(4, 2, 3, 5, 5).contiguous()
    statistics, _ = native.moments(z, 0)
    assert torch.equal(statistics[0], z[0, 0, :, 0, 0]) and not statistics[1].any()


def test_two_values_per_channel(device):
    """Two values per channel, the smallest number; the unbiased variance is then twice the biased one."""
    z = current((1, 2, 3, 1, 1), device=device)
    bn = nn.BatchNorm2d(3, momentum=1.0).to(device)
    bn_neuron(z, bn, None)
    torch.testing.assert_close(bn.running_var, z.flatten(0, 1).var((0, 2, 3)))
    with pytest.raises(ValueError, match="z_seq must have more than one value per channel in training"):
        bn_neuron(z[:, :1], bn, None)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None], ids=str)
@pytest.mark.parametrize("T", [None, 3])
def test_running_statistics_are_torchs(T, momentum, device):
    """Three calls; with momentum None their average. A still image counts once, because it is normalised once."""
    fused, torchs = (norm(4, torch.float64, device, momentum=momentum) for _ in range(2))
    for seed in range(3):
        z = current((5, 4, 3, 3) if T else (3, 5, 4, 3, 3), torch.float64, device, seed=seed)
        bn_neuron(z, fused, neuron.IFNode(), T=T)
        torchs(z if T else z.flatten(0, 1))
    torch.testing.assert_close(dict(fused.named_buffers()), dict(torchs.named_buffers()), rtol=1e-14, atol=1e-14)
    assert fused.num_batches_tracked == 3


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
def test_a_norm_that_does_not_count(momentum, device):
    """With num_batches_tracked = None, which torch allows, running statistics are updated as in torch."""
    z = current((3, 5, 4, 3, 3), torch.float64, device)
    fused, torchs = (norm(4, torch.float64, device, momentum=momentum) for _ in range(2))
    layer = BNNeuron(4, False, momentum=momentum, dtype=torch.float64, device=device)
    layer.load_state_dict(fused.state_dict())
    fused.num_batches_tracked = torchs.num_batches_tracked = layer.num_batches_tracked = None
    bn_neuron(z, fused, None)
    bn_neuron(z, layer, None, fused=False)
    torchs(z.flatten(0, 1))
    expected = dict(torchs.named_buffers())
    torch.testing.assert_close(dict(fused.named_buffers()), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(dict(layer.named_buffers()), expected, rtol=1e-14, atol=1e-14)


def test_what_leaves_running_statistics_alone(device):
    """Running statistics stay unchanged in evaluation and without tracking, as in torch."""
    z = current((3, 2, 4, 3, 3), device=device)
    late = norm(4, device=device)
    late.track_running_stats = False
    for bn in (norm(4, device=device, training=False), late):
        before = {name: buffer.clone() for name, buffer in bn.named_buffers()}
        bn_neuron(z, bn, None)
        assert all(torch.equal(buffer, before[name]) for name, buffer in bn.named_buffers())
    untracked = norm(4, device=device, training=False, track_running_stats=False)
    out = bn_neuron(z, untracked, None).out
    torch.testing.assert_close(out, bn_neuron(z, untracked.train(), None).out, rtol=0, atol=0)
    assert untracked.running_mean is None


def test_running_statistics_of_another_dtype(device):
    """bfloat16 statistics of a bfloat16 model are updated in float32, then rounded; float32 ones stay float32."""
    z = current((3, 2, 4, 3, 3), torch.bfloat16, device)
    wide, narrow = (norm(4, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    expected = norm(4, torch.bfloat16, device).float()
    for bn in (wide, narrow, expected):
        bn_neuron(z, bn, None)
    assert wide.running_mean.dtype == torch.float32
    assert torch.equal(narrow.running_var, expected.running_var.bfloat16())
    assert torch.equal(narrow.running_mean, expected.running_mean.bfloat16())


def test_a_norm_of_any_stride(device):
    """Parameters and running statistics with a stride of 2."""
    z, bn, dense = current((3, 2, 4, 3, 3), device=device), norm(4, device=device), norm(4, device=device)
    for name, value in {**dict(dense.named_parameters()), **dict(dense.named_buffers())}.items():
        if value.dim():
            strided = value.detach().repeat_interleave(2)[::2]
            setattr(bn, name, nn.Parameter(strided) if isinstance(value, nn.Parameter) else strided)
            assert getattr(bn, name).stride() == (2,)
    for training in (True, False):
        out, expected = (bn_neuron(z, m.train(training), neuron.LIFNode()).out for m in (bn, dense))
        assert torch.equal(out, expected)
    assert torch.equal(bn.running_mean, dense.running_mean) and torch.equal(bn.running_var, dense.running_var)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_not_finite(value, device):
    """The CPU names the channel; a GPU raises nothing, because it would have to wait. Running statistics stay."""
    z = current((3, 2, 4, 3, 3), device=device)
    z[1, 1, 2, 0, 1] = value
    layer = BNNeuron(4, neuron.IFNode()).to(device)
    before = {name: t.clone() for name, t in layer.state_dict().items() if name != "num_batches_tracked"}
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"z_seq has values that are not finite, or overflow, in channel 2"):
            layer(z)
        assert layer.num_batches_tracked == 0 and layer.neuron.v is None
    else:
        layer(z)
    assert all(torch.equal(t, layer.state_dict()[name]) for name, t in before.items())
    out = layer.eval()(z)  # nothing is averaged: the others' spikes are as they were
    assert torch.equal(out[:, 0], layer(z[:, :1])[:, 0])


def run(z, shortcut, threads=None):
    torch.manual_seed(0)
    layer, before = BNNeuron(z.shape[2], neuron.ParametricLIFNode(), "AND").to(z.device), torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        z, shortcut = z.detach().requires_grad_(), shortcut.detach().requires_grad_()
        out = layer(z, shortcut)
        (out * current(out.shape, device=z.device, seed=4)).sum().backward()
    finally:
        torch.set_num_threads(before)
    return [out.detach(), z.grad, shortcut.grad, *layer.buffers(), *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_same_bits_every_time(order, device):
    """The bits are the same with any number of threads: the order of sums depends only on the shape."""
    z, shortcut = (
        current((6 * 8, 16, 12, 12), device=device, seed=s).contiguous(memory_format=order).unflatten(0, (6, 8))
        for s in range(2)
    )
    results = [run(z, shortcut, threads) for threads in ((1, 1, 2, 3) if device == "cpu" else (None,) * 3)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
