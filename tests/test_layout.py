"""Memory orders: the kernels read dense orders in place and copy all others once."""

import pytest
import torch
from cases import compare, current
from torch._subclasses.fake_tensor import FakeTensorMode

from sewsnn import functional
from sewsnn.ops.neuron import dense_strides


def channels_last(device, dtype=torch.float32):
    return current((5 * 2, 3, 4, 6), dtype, device).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 2))


LAYOUTS = {
    "contiguous": (lambda d: current((5, 2, 3, 4), device=d), True),
    "channels_last": (channels_last, True),
    "permuted": (lambda d: current((5, 4, 2, 3), device=d).permute(0, 2, 3, 1), True),
    "repeated over T": (lambda d: current((1, 2, 3, 4), device=d).expand(7, 2, 3, 4), True),
    "channels_last, repeated": (lambda d: channels_last(d)[0].unsqueeze(0).expand(6, 2, 3, 4, 6), True),
    "every other time-step": (lambda d: current((10, 2, 3), device=d)[::2], True),
    "T = 1": (lambda d: current((1, 2, 3), device=d), True),
    "one neuron": (lambda d: current((6, 1), device=d), True),
    "no inner dimension": (lambda d: current((6,), device=d), True),
    "T innermost": (lambda d: current((2, 3, 5), device=d).permute(2, 0, 1), False),
    "sliced": (lambda d: current((5, 2, 9), device=d)[..., 1:8], False),
    "stepped": (lambda d: current((5, 2, 9), device=d)[..., ::2], False),
    "inner repeated": (lambda d: current((5, 2, 1), device=d).expand(5, 2, 4), False),
    "unaligned": (lambda d: current((5 * 8 + 1,), device=d)[1:].view(5, 8), True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, device):
    make, _ = LAYOUTS[layout]
    x = make(device)
    compare("lif", x, tau=2.0, loss="sv")
    compare("lif", x, tau=2.0, store_v_seq=True, loss="sv")
    v = current(x.shape[1:], device=device, seed=9)
    compare("if", x, v=v, loss="sv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_strides(layout, device):
    """Real and fake kernels give dense results with T outermost, one time-step in the order of x."""
    x = LAYOUTS[layout][0](device)
    expected = dense_strides(x)
    leak = torch.tensor(0.5, device=device)
    options = (2, 2.0, True, 1.0, 0.0, 0, 2.0, True)

    def results(x, leak):
        s, v_seq, kept = torch.ops.sewsnn.neuron_forward(x, None, leak, *options, 2, True)
        _, v, _ = torch.ops.sewsnn.neuron_forward(x, None, leak, *options, 1, True)
        backward = torch.ops.sewsnn.neuron_backward(s, v, x, v, leak, kept, *options, 1, True, True)
        return [s, v_seq, v, kept, *backward]

    real = results(x, leak)
    assert list(real[0].stride()) == list(real[1].stride()) == expected and list(real[2].stride()) == expected[1:]
    with FakeTensorMode() as mode:
        fake = results(mode.from_tensor(x), mode.from_tensor(leak))
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


def copies(function) -> int:
    """Returns the number of tensors that ``function`` copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::copy_")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_only_what_must_be(layout, device):
    make, in_place = LAYOUTS[layout]
    x = make(device)
    assert copies(lambda: functional.lif_multistep(x, backend="native")) == (0 if in_place else 1)


def gradient(grad_of, x, backend):
    x = x.detach().requires_grad_()
    s, _ = functional.lif_multistep(x, backend=backend)
    (grad,) = torch.autograd.grad(s, x, grad_of(s))
    return grad


GRADIENTS = {
    "one number": (lambda s: torch.ones((), device=s.device).expand_as(s), 0),
    "per time-step": (lambda s: torch.arange(len(s), device=s.device).float().view(-1, 1, 1, 1).expand_as(s), 0),
    "repeated over T": (
        lambda s: (torch.arange(s[0].numel(), device=s.device) % 7).float().view_as(s[0]).expand_as(s),
        0,
    ),
    "pooled": (lambda s: torch.rand(*s.shape[:2], 1, 1, device=s.device).expand_as(s), 1),
    "other order": (lambda s: torch.rand(s.shape[::-1], device=s.device).permute(3, 2, 1, 0), 1),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_incoming_gradient(kind, device):
    make, expected_copies = GRADIENTS[kind]
    x = current((5, 2, 3, 4), device=device)
    grad_of = make(x)  # the same values for both
    reference = gradient(lambda s: grad_of, x, "torch")
    torch.testing.assert_close(gradient(lambda s: grad_of, x, "native"), reference, rtol=1e-5, atol=1e-5)
    if device == "cuda" and kind in ("one number", "per time-step"):
        expected_copies = 1  # to rows of 16 numbers, which wide loads can read
    assert copies(lambda: gradient(lambda s: grad_of, x, "native")) == expected_copies


def test_gradient_of_a_sum_over_channels_last(device):
    for reduce in (torch.sum, lambda s: s.mean(0).square().sum(), lambda s: s.mean((-1, -2)).square().sum()):
        grads = []
        for backend in ("native", "torch"):
            x = channels_last(device).requires_grad_()
            reduce(functional.lif_multistep(x, backend=backend)[0]).backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
