"""torch.func with neurons, and second derivatives."""

import warnings

import pytest
import torch
from cases import current

from sewsnn import functional

NEURONS = {
    "if": functional.if_multistep,
    "lif": functional.lif_multistep,
    "plif": lambda x, **kw: functional.plif_multistep(x, torch.tensor(0.3, device=x.device), **kw),
}
every_neuron = pytest.mark.parametrize("multistep", NEURONS.values(), ids=NEURONS.keys())


@pytest.fixture(autouse=True)
def _no_word_of_the_batching_rule():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop because")
        yield


def weighted(multistep, x):
    s, v = multistep(x)
    return (s * torch.arange(s.shape[-1], device=x.device, dtype=x.dtype)).sum() + v.square().sum()


def gradient(multistep, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(weighted(multistep, x), x)[0]


@pytest.mark.parametrize("T", (4, 20))
@every_neuron
def test_grad(multistep, T, device):
    x = current((T, 3, 5), device=device)
    assert torch.equal(torch.func.grad(lambda x: weighted(multistep, x))(x), gradient(multistep, x))


@every_neuron
def test_vmap(multistep, device):
    x = current((4, 6, 3, 5), device=device)
    for out, expected in zip(torch.func.vmap(multistep, in_dims=1, out_dims=(1, 0))(x), multistep(x), strict=True):
        assert torch.equal(out, expected)


@every_neuron
def test_gradients_per_sample(multistep, device):
    x = current((4, 6, 3, 5), device=device)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: weighted(multistep, x)), in_dims=1, out_dims=1)(x)
    assert torch.equal(per_sample, gradient(multistep, x))


def test_gradients_per_tau(device):
    x, taus = current((4, 30), device=device), torch.tensor([-0.5, 0.0, 0.5], device=device)

    def loss(w):
        return functional.plif_multistep(x, w)[0].sum()

    per_tau = torch.func.vmap(torch.func.grad(loss))(taus)
    for w, grad in zip(taus, per_tau, strict=True):
        w = w.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(loss(w), w)[0], grad)


@every_neuron
def test_no_second_derivative(multistep, device):
    x = current((4, 10), device=device).requires_grad_()
    (grad,) = torch.autograd.grad(multistep(x)[0].sum(), x, create_graph=True)
    assert torch.equal(grad, torch.autograd.grad(multistep(x)[0].sum(), x)[0])
    with pytest.raises(RuntimeError, match=r"no second derivative .* backend='torch'"):
        torch.autograd.grad(grad.sum(), x)


@every_neuron
def test_checkpointing(multistep, device):
    """torch.utils.checkpoint runs the neuron again in backward."""
    x = current((20, 10), device=device)

    def again(x):
        return torch.utils.checkpoint.checkpoint(multistep, x, use_reentrant=False)

    assert torch.equal(gradient(again, x), gradient(multistep, x))
