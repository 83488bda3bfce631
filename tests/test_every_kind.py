"""Every neuron: its nodes with the compiled kernels, compared with the reference. A new neuron needs no new test."""

import pytest
import torch
from cases import assert_close, current
from every_kind import KIND, NODES, cases, compare, inputs

from sewsnn import functional, layers
from sewsnn.ops import reference
from sewsnn.ops.neuron import V_SEQUENCE

pytestmark = pytest.mark.usefixtures("one_thread")
every_node = pytest.mark.parametrize("name", NODES)


def native(x, state, learnt, spec):
    return functional.multistep(x, state, spec, learnt, v_mode=V_SEQUENCE, backend="native")


def test_every_kind_has_a_node():
    assert set(KIND.values()) == set(reference.NEURONS)


@every_node
def test_equals_the_reference(name, device):
    for settings, T, dtype, given, channels in cases(name):
        node = NODES[name](**settings)
        compare(native, node.spec(), *inputs(node, T, dtype, given, channels, device))


@every_node
def test_works_after_batch_norm(name, device):
    """The fused op and the modules one after the other; the moments are given, so that both normalise alike."""
    for settings, T, dtype, _, channels in cases(name):
        if dtype not in (torch.float32, torch.float64):
            continue
        outputs = []
        for backend in ("native", "torch"):
            node = NODES[name](backend=backend, **settings)
            x, _, learnt = inputs(node, T, dtype, False, channels, device)
            node.learnt_parameters = lambda state, learnt=learnt: learnt
            block = layers.BNNeuron(5, neuron=node, connect_f="ADD").to(device, dtype).eval()
            torch.nn.init.uniform_(block.running_var, 0.5, 2, generator=torch.Generator().manual_seed(0))
            x = x.requires_grad_()
            out = block(x, torch.ones_like(x))
            (out * current(out.shape, dtype, device, mean=0.1, seed=2)).sum().backward()
            sums = [block.weight.grad] if learnt is None else [block.weight.grad, learnt.grad]
            outputs.append((out.detach(), node.v, x.grad, *sums))
        (out, v, grad_x, *sums), (out_ref, v_ref, grad_x_ref, *sums_ref) = outputs
        torch.testing.assert_close(out, out_ref, rtol=0, atol=0)
        torch.testing.assert_close(v, v_ref, rtol=0, atol=0)
        if T > 16 and not all(grad.isfinite().all() for grad in (grad_x_ref, *sums_ref)):
            continue
        assert_close(grad_x, grad_x_ref, T)
        for grad, expected in zip(sums, sums_ref, strict=True):
            bound = 64 * torch.finfo(dtype).eps * x.numel() ** 0.5
            torch.testing.assert_close(grad, expected, rtol=bound, atol=bound * float(x.numel()) ** 0.5)


@every_node
def test_state_is_kept(name):
    """One time-step per call gives what one call for all time-steps gives."""
    x = current((6, 2, 5))
    with torch.no_grad():
        node = NODES[name](step_mode="s")
        assert torch.equal(torch.stack([node(one) for one in x]), NODES[name]()(x))


@every_node
def test_kernels_take_what_the_node_takes(name):
    """A setting is refused when it is assigned, and not by an op in the middle of a run."""
    x = current((2, 2, 5))
    names = ("tau", "v_threshold", "v_reset", *reference.NEURONS[KIND[name]].extra)
    for setting in names:
        for value in (-1e30, -2.5, -1.0, 0.0, 1e-30, 0.5, 1.0, 255.0, 1e30):
            node = NODES[name](backend="native")
            if setting not in vars(node):
                continue
            try:
                setattr(node, setting, value)
            except (ValueError, TypeError, AttributeError) as error:
                assert setting in str(error)
                continue
            node(x)
