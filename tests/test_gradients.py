"""Gradients, compared with autograd through the reference, and with finite differences where these exist."""

import pytest
import torch
from cases import by_reference, compare, current

from sewsnn import functional, surrogate
from sewsnn.ops import reference
from sewsnn.ops.spec import NeuronSpec

SURROGATES = [
    surrogate.ATan(2.0),
    surrogate.Rectangular(1.5),
    surrogate.Constant(0.7),
    surrogate.Sigmoid(4.0),
    surrogate.PiecewiseQuadratic(0.8),
    surrogate.PiecewiseExp(1.3),
    surrogate.SoftSign(2.0),
    surrogate.SuperSpike(1.5),
    surrogate.Erf(1.1),
    surrogate.UnitATan(0.4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("detach", [True, False], ids=["detach", "through"])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None], ids=["hard", "hard-.2", "soft"])
@pytest.mark.parametrize("function", SURROGATES, ids=repr)
def test_equals_reference(function, v_reset, detach, dtype, device):
    x = current((5, 2, 77), dtype, device)
    v = current((2, 77), dtype, device, seed=4)
    w = torch.tensor(-0.4, dtype=dtype, device=device)
    shared = {"surrogate_function": function, "v_reset": v_reset, "detach_reset": detach, "v": v}
    compare("if", x, loss="sv", **shared)
    compare("lif", x, tau=2.5, decay_input=False, loss="sv", **shared)
    compare("plif", x, w=w, store_v_seq=True, loss="sv", **shared)


@pytest.mark.parametrize("loss", ["s", "v", "sv"])
@pytest.mark.parametrize("store_v_seq", [False, True], ids=["final", "seq"])
@pytest.mark.parametrize("T", [1, 5, 16, 17, 40])
def test_every_output_has_its_gradient(T, store_v_seq, loss, device):
    x = current((T, 60), torch.float64, device)
    v = current((60,), torch.float64, device, seed=2)
    w = torch.tensor(0.4, dtype=torch.float64, device=device)
    for decay_input in (True, False):
        for detach in (True, False):
            shared = {"detach_reset": detach, "store_v_seq": store_v_seq, "decay_input": decay_input, "v": v}
            compare("plif", x, w=w, loss=loss, **shared)
            compare("lif", x, tau=1.5, loss=loss, **shared)


@pytest.mark.parametrize("v_reset", [0.0, -0.3, None], ids=["hard", "hard-.3", "soft"])
@pytest.mark.parametrize("function", [f for f in SURROGATES if f.parameter_name == "alpha"], ids=repr)
def test_smooth_twin_passes_gradcheck(function, v_reset):
    """The reference with the surrogate's primitive as spike is differentiable in x, the initial v and w."""
    x = current((4, 3), torch.float64, scale=0.8).requires_grad_()
    v = current((3,), torch.float64, scale=0.5, seed=7).requires_grad_()
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    shared = {"surrogate": function.primitive, "v_reset": v_reset, "detach_reset": False}
    for decay_input in (True, False):
        plif = NeuronSpec("PLIF", decay_input=decay_input, **shared)
        lif = NeuronSpec("LIF", tau=1.8, decay_input=decay_input, **shared)
        assert torch.autograd.gradcheck(lambda x, v, w, n=plif: reference.multistep(x, n, v, w.sigmoid()), (x, v, w))
        assert torch.autograd.gradcheck(lambda x, v, n=lif: reference.multistep(x, n, v), (x, v))
    assert torch.autograd.gradcheck(lambda x, v: reference.multistep(x, NeuronSpec("IF", **shared), v), (x, v))


@pytest.mark.parametrize("v_reset", [0.0, -0.3, None], ids=["hard", "hard-.3", "soft"])
@pytest.mark.parametrize("T", [6, 20])
def test_native_passes_gradcheck_between_spikes(T, v_reset, device):
    """With a detached reset, v is smooth if no h is at the threshold, so backward must be its true derivative."""
    x = current((T, 4), torch.float64, device).requires_grad_()
    v = current((4,), torch.float64, device, seed=7, scale=0.4).requires_grad_()
    w = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
    settings = {"v_reset": v_reset, "store_v_seq": True, "backend": "native"}
    s, _ = functional.plif_multistep(x, w, v, **settings)
    assert 0 < s.sum() < s.numel()  # some fire, some do not
    for decay_input in (True, False):
        functions = [
            (
                lambda x, v, w, d=decay_input: functional.plif_multistep(x, w, v, decay_input=d, **settings)[1],
                (x, v, w),
            ),
            (lambda x, v, d=decay_input: functional.lif_multistep(x, v, tau=3.0, decay_input=d, **settings)[1], (x, v)),
            (lambda x, v: functional.if_multistep(x, v, **settings)[1], (x, v)),
        ]
        for function, inputs in functions:
            assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("M", [1, 40, 64, 100, 1025])
def test_leak_gradient_of_a_sum(M, device):
    """dL/ds is one number for all neurons. On the CPU the last tile is padded with additional neurons."""
    grads = []
    for backend in ("native", "reference"):
        x = current((20, M), torch.float64, device)
        v = current((M,), torch.float64, device, seed=3).requires_grad_()
        w = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
        settings = {"v_reset": -0.2, "decay_input": False}
        if backend == "native":
            s, v_out = functional.plif_multistep(x, w, v, backend=backend, **settings)
        else:
            s, v_out = by_reference("plif", x, v, w, **settings)
        grads.append([g.cpu() for g in torch.autograd.grad(s.sum() + 3 * v_out.sum(), (v, w))])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_second_derivative_is_refused(device):
    x = current((4, 5), device=device).requires_grad_()
    s, _ = functional.lif_multistep(x, backend="native")
    (grad,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='torch'"):
        grad.sum().backward()


def test_only_what_needs_a_gradient_gets_one(device):
    x = current((4, 5), device=device)
    w = torch.tensor(0.1, device=device, requires_grad=True)
    v = torch.zeros(5, device=device)
    s, _ = functional.plif_multistep(x, w, v, backend="native")
    s.sum().backward()
    assert w.grad is not None and x.grad is None and v.grad is None
