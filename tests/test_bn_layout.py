"""Memory orders of the fused op: it reads dense orders in place and copies all others once."""

import pytest
import torch
from bn_cases import CONNECTIONS, Case, compare, norm
from cases import current
from test_layout import copies
from torch._subclasses.fake_tensor import FakeTensorMode

from sewsnn import neuron
from sewsnn.layers import bn_neuron
from sewsnn.ops.bn import NO_NEURON
from sewsnn.ops.neuron import dense_strides


def channels_last(shape, device):
    z = current((shape[0] * shape[1], *shape[2:]), device=device)
    return z.contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])


def unaligned(shape, device):
    n = torch.Size(shape).numel()
    return current((n + 1,), device=device)[1:].view(shape)


#: how z is made, and whether the op can read it in place
LAYOUTS = {
    "contiguous": (lambda d: current((5, 2, 3, 4, 7), device=d), True),
    "channels_last": (lambda d: channels_last((5, 2, 3, 4, 7), d), True),
    "channels_last, 64": (lambda d: channels_last((5, 2, 64, 3, 2), d), True),
    "channels outermost": (lambda d: current((5, 3, 2, 4, 7), device=d).transpose(1, 2), True),
    "batch innermost": (lambda d: current((5, 4, 3, 7, 2), device=d).permute(0, 4, 2, 1, 3), True),
    "repeated over T": (lambda d: current((1, 2, 3, 4, 7), device=d).expand(6, 2, 3, 4, 7), True),
    "every other time-step": (lambda d: current((10, 2, 3, 4, 7), device=d)[::2], True),
    "unaligned": (lambda d: unaligned((5, 2, 3, 4, 7), d), True),
    "one channel, any stride": (
        lambda d: current((5, 2, 1, 28), device=d).as_strided((5, 2, 1, 28), (56, 28, 3, 1)),
        True,
    ),
    "T = 1": (lambda d: current((1, 2, 3, 4, 7), device=d), True),
    "T innermost": (lambda d: current((2, 3, 4, 7, 5), device=d).permute(4, 0, 1, 2, 3), False),
    "some channels": (lambda d: current((5, 2, 9, 4, 7), device=d)[:, :, 2:5], False),
    "stepped": (lambda d: current((5, 2, 3, 4, 14), device=d)[..., ::2], False),
    "plane repeated": (lambda d: current((5, 2, 3, 1, 1), device=d).expand(5, 2, 3, 4, 7), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, device):
    z = LAYOUTS[layout][0](device)
    for connection in ("none", "IAND", "before"):
        compare(Case(z, connection, return_skip=True))
    compare(Case(z[0], "AND", T=5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shortcut_of_another_layout(layout, device):
    """The op reads a shortcut in the order of z in place, and copies one in another order."""
    shortcut = LAYOUTS[layout][0](device)
    z = current(shortcut.shape, device=device, seed=7)
    for connection in ("ADD", "AND", "before"):
        result = compare(Case(z, connection, shortcut=shortcut))
        assert result.out.stride() == z.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_only_what_must_be(layout, device):
    """Training reads z twice, for the statistics and for the forward; both copy a z that cannot be read in place."""
    make, in_place = LAYOUTS[layout]
    z, bn = make(device), norm(make(device).shape[2], device=device)
    for training in (True, False):
        bn.train(training)
        expected = 0 if in_place else 1 + training
        assert copies(lambda: bn_neuron(z, bn, neuron.LIFNode())) == expected, training


@pytest.mark.parametrize("T", [0, 3], ids=["sequence", "still"])
@pytest.mark.parametrize("connect", range(5))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_kernels(layout, connect, T, device):
    """Shapes, strides, dtypes and devices equal those of the real op, for requested and for other outputs."""
    z = LAYOUTS[layout][0](device)
    z = z[0] if T else z
    z_seq = z.unsqueeze(0).expand(T, *z.shape) if T else z
    C, can_pack = z_seq.shape[2], connect in (0, 4) and z_seq[0].numel() % 8 == 0
    tensors = [z, None, *(torch.ones(shape, device=device) for shape in ((2, C), (C,), (C,), ()))]
    if connect:
        tensors[1] = torch.ones(z_seq.shape, device=device)

    def results(z, shortcut, statistics, weight, bias, leak):
        outputs = [torch.ops.sewsnn.bn_statistics(z, T, False)]
        for kind, v_mode, needs_grad in ((2, 1, True), (1, 0, False), (NO_NEURON, 0, True)):
            channels, pack = (statistics, weight, bias, leak), can_pack and kind != NO_NEURON
            options = (1e-5, connect, T, kind, 2.0, True, 1.0, 0.0, 0, 2.0, True)
            out, v, kept, bits = torch.ops.sewsnn.bn_neuron_forward(
                z, shortcut, *channels, *options, v_mode, needs_grad, pack, True
            )
            outputs += [out, v, kept, bits]
            if needs_grad:
                options = (1e-5, 0 if connect == 1 else connect, *options[2:])
                inputs = (z, None if connect == 1 else shortcut, *channels, kept)
                skip = out if kind == 2 else None
                reduced = torch.ops.sewsnn.bn_neuron_reduce(out, skip, *inputs, *options, kind == 2)
                applied = torch.ops.sewsnn.bn_neuron_apply(
                    out, *inputs, reduced[0], 30.0, *options, connect in (2, 3, 4)
                )
                outputs += [*reduced, *applied]
        return outputs

    real = results(*tensors)
    assert list(real[1].stride()) == dense_strides(z_seq)
    with FakeTensorMode() as mode:
        fake = results(*(None if t is None else mode.from_tensor(t) for t in tensors))
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


@pytest.mark.parametrize("T", [16, 17, 32, 33])
def test_fake_checkpoints(T, device):
    """One potential per neuron before each chunk of 16 time-steps except the first; none without gradients."""
    options = (None, None, None, None, None, 0.0, 0, 0, 0, 2.0, True, 1.0, 0.0, 0, 2.0, True, 0)
    for needs_grad in (True, False):
        z = current((T, 2, 3, 5), device=device)
        real = torch.ops.sewsnn.bn_neuron_forward(z, *options, needs_grad, False, False)[2]
        with FakeTensorMode() as mode:
            z = mode.from_tensor(z)
            fake = torch.ops.sewsnn.bn_neuron_forward(z, *options, needs_grad, False, False)[2]
        assert real.shape == fake.shape == ((T - 1) // 16 * 30 * needs_grad,)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_gradient_of_another_layout(connection, device):
    """An incoming gradient may have any memory order; the gradient of z has the order of z."""
    shape = (5, 2, 3, 4, 7)
    z0 = channels_last(shape, device)
    connect_f, before = CONNECTIONS[connection]
    results = []
    for make in (lambda d: channels_last(shape, d), lambda d: channels_last(shape, d).contiguous()):
        z = z0.detach().requires_grad_()
        shortcut = None if connect_f is None else z0.flip(0).requires_grad_()
        bn = norm(3, device=device)
        out = bn_neuron(z, bn, neuron.LIFNode(), shortcut, connect_f=connect_f, connect_before=before).out
        results.append(torch.autograd.grad(out, [z, bn.weight], make(device)))
        assert results[-1][0].stride() == z.stride()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
