"""The stem's op (batch norm + neuron + max pooling of a still image), compared with the modules one after the other."""

import pytest
import torch
from torch import nn

from sewsnn import layers, models, neuron
from sewsnn.ops import pool

NEURONS = {
    "if": lambda: neuron.IFNode(store_v=False),
    "lif_tau3_soft": lambda: neuron.LIFNode(tau=3.0, v_reset=None, detach_reset=False, store_v=False),
    "plif": lambda: neuron.ParametricLIFNode(init_tau=3.0, store_v=False),
}
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def images(shape, dtype=torch.float64, device="cpu", order=torch.contiguous_format):
    generator = torch.Generator().manual_seed(sum(shape))
    z = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3
    return z.to(device, dtype).to(memory_format=order).requires_grad_()


def run(fused, z, make, T, training=True):
    """Pooled spikes, gradients of z and all parameters, running statistics."""
    torch.manual_seed(0)
    bn, node = nn.BatchNorm2d(z.shape[1]), make()
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.uniform_(bn.bias, -0.5, 0.9)
    nn.init.uniform_(bn.running_mean, 0, 0.5)
    state = torch.float64 if z.dtype == torch.float64 else torch.float32
    bn.to(z.device, state).train(training)
    node.to(z.device, state)
    out = layers.bn_neuron_pool(z, bn, node, T, fused=fused)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (out * weight.to(out.device, out.dtype)).sum(dtype=torch.float64)
    grads = torch.autograd.grad(loss, [z, *bn.parameters(), *node.parameters()])
    return out.detach(), grads, (bn.running_mean, bn.running_var, bn.num_batches_tracked)


@pytest.mark.parametrize("T", (1, 3, 4, 16, 17))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_equals_the_modules(make, order, T, device):
    """In float64 everything agrees up to rounding. (T = 17 runs the modules.)"""
    for shape in ((2, 3, 7, 9), (2, 64, 16, 20), (3, 12, 33, 70), (8, 5, 1, 1), (2, 8, 2, 3)):
        z = images(shape, device=device, order=ORDERS[order])
        for training in (True, False):
            results = [run(fused, z, make, T, training) for fused in (True, False)]
            (out, grads, running), (out_ref, grads_ref, running_ref) = results
            assert out.shape == (T, shape[0], shape[1], (shape[2] + 1) // 2, (shape[3] + 1) // 2)
            assert torch.equal(out, out_ref)
            for actual, expected in zip((*grads, *running), (*grads_ref, *running_ref), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_spikes_of_narrow_storage(dtype, order, device):
    """The spikes equal those of the same numbers in float64, except for a few neurons within rounding of the threshold.
    There are only few, because the state is float32 for every storage type."""
    z = images((4, 16, 32, 32), dtype, device, ORDERS[order])
    out, grads, _ = run(True, z, NEURONS["if"], 4)
    out_ref, grads_ref, _ = run(True, z.detach().double().requires_grad_(), NEURONS["if"], 4)
    assert out.dtype == dtype and grads[0].dtype == dtype
    assert out.is_contiguous() == (order == "contiguous")
    assert (out.double() != out_ref).sum() <= 1e-4 * out.numel()
    wrong = (grads[0].double() - grads_ref[0]).norm() / grads_ref[0].norm()
    assert wrong < (1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps)


def test_empty_batch(device):
    """A batch without images gives an empty result in the shape of max_pool2d, and zero gradients."""
    for shape in ((0, 3, 4, 4), (0, 3, 5, 8)):
        (out, grads, _), (out_ref, grads_ref, _) = (
            run(fused, torch.zeros(shape, device=device, requires_grad=True), NEURONS["plif"], 3, training=False)
            for fused in (True, False)
        )
        assert out.shape == out_ref.shape
        for actual, expected in zip(grads, grads_ref, strict=True):
            assert torch.equal(actual, expected)


def test_ties_go_to_the_first_position(device):
    """As in max_pool2d, the gradient goes to the first neuron that fires; in a silent window to the first neuron inside
    the image. The test has one window of 3 x 3, with padding at the top and on the left."""
    z = torch.tensor([[[[0.0, 2.0], [2.0, 2.0]]], [[[0.0, 0.0], [0.0, 0.0]]]], device=device, requires_grad=True)
    layers.bn_neuron_pool(z, None, neuron.IFNode(store_v=False), 1).sum().backward()
    assert (z.grad != 0).tolist() == [[[[False, True], [False, False]]], [[[True, False], [False, False]]]]


def test_what_is_kept(device):
    """It saves z and a few numbers per channel, but no spikes and no indices."""
    z = images((2, 64, 32, 32), torch.float32, device)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layers.bn_neuron_pool(z, nn.BatchNorm2d(64, device=device), NEURONS["if"](), 4)
    assert kept.pop(z.data_ptr()) == 4 * z.numel()
    assert sum(kept.values()) <= 4 * 4 * 64


def test_the_imagenet_stem_uses_it(device, monkeypatch):
    model = models.create_model("sew_resnet", blocks=[1], widths=[8], T=4).to(device)
    calls, original = [], pool.bn_neuron_pool
    monkeypatch.setattr(pool, "bn_neuron_pool", lambda *a, **k: calls.append(1) or original(*a, **k))
    model(torch.rand(2, 3, 32, 32, device=device)).sum().backward()
    assert calls == [1] and model.bn1.weight.grad is not None


@pytest.mark.parametrize(
    "z, T, error, message",
    [
        (torch.rand(2, 8, 4), 4, ValueError, r"z_seq must be \[N, C, H, W\], got shape \[2, 8, 4\]"),
        (torch.rand(2, 7, 4, 4), 4, ValueError, "with 8 channels"),
        (torch.rand(2, 8, 4, 4), 0, ValueError, "T must be at least 1"),
        (torch.rand(2, 8, 4, 4), None, TypeError, "T must not be None"),
        (torch.rand(1, 8, 1, 1), 4, ValueError, "more than one value per channel"),
        (torch.rand(2, 8, 4, 4).long(), 4, TypeError, "z_seq must be float32"),
        (torch.full((2, 8, 4, 4), torch.inf), 4, RuntimeError, "not finite"),
    ],
)
def test_bad_input(z, T, error, message):
    bn = nn.BatchNorm2d(8)
    with pytest.raises(error, match=message):
        layers.bn_neuron_pool(z, bn, neuron.IFNode(store_v=False), T)
    assert bn.num_batches_tracked == 0 and torch.equal(bn.running_mean, torch.zeros(8))
