"""CUBA-LIF, adaptive LIF, I-LIF, QIF and LIF with learnt numbers: both backends, against loops and the reference."""

import pytest
import torch
from cases import current, pairwise
from neuron_cases import (
    BACKENDS,
    NODES,
    SPECS,
    by_loop,
    compare,
    every_node,
    every_spec,
    learnt_of,
    make,
    run,
    state_of,
)

from sewsnn import neuron, surrogate
from sewsnn.ops import reference, registry
from sewsnn.ops.spec import NeuronSpec

every_backend = pytest.mark.parametrize("backend", BACKENDS)
SMOOTH = surrogate.Sigmoid(2.0).primitive


def test_the_reference_knows_what_the_library_knows():
    """Names are the library's, in its order, and every property agrees."""
    assert list(reference.NEURONS) == list(registry.KINDS)
    for name, info in registry.KINDS.items():
        model = reference.NEURONS[name]
        counts = tuple(map(len, (model.states, model.learnt, model.extra)))
        flags = (model.per_channel, model.binary, model.surrogate, model.uses_tau)
        assert (*info[1:4], *info[4:8]) == (*counts, *flags), name
    # Exported programs contain the numbers; 3 meant "no neuron" in early ones.
    assert [info.number for info in registry.KINDS.values()][:4] == [0, 1, 2, 10]
    assert set(registry.SURROGATES) == set(surrogate.__all__) - {"Surrogate"}


def test_defaults_are_spikingjellys():
    """Those of SpikingJelly 2.0, except for the step mode."""
    cuba, adaptive, integer, quadratic = (NODES[name][0]() for name in ("CUBALIF", "AdaptiveLIF", "ILIF", "QIF"))
    assert (cuba.c_decay, cuba.v_decay, cuba.v_threshold, cuba.v_reset) == (0.5, 0.75, 0.5, 0.0)
    assert cuba.surrogate_function == surrogate.Rectangular(1.0)
    assert (adaptive.v_threshold, adaptive.v_reset, adaptive.v_rest, adaptive.w_rest) == (1.0, 0.0, 0.0, 0.0)
    assert (adaptive.tau, adaptive.tau_w, adaptive.a, adaptive.b) == (2.0, 2.0, 0.0, 0.0)
    assert integer.tau == 4 / 3 and integer.surrogate_function == surrogate.MultiLevelSpikeCount(4)
    assert (quadratic.tau, quadratic.v_c, quadratic.a0, quadratic.v_threshold) == (2.0, 0.8, 1.0, 1.0)
    assert (quadratic.v_rest, quadratic.v_reset) == (0.0, -0.1)
    assert adaptive.surrogate_function == quadratic.surrogate_function == surrogate.Sigmoid(4.0)
    for node in (cuba, adaptive, integer, quadratic):
        assert not node.detach_reset and node.step_mode == "m"
    assert neuron.CUBALIFNode(0.1, 0.2, 0.3, None, surrogate.ATan(), True, "s").v_reset is None
    assert neuron.AdaptiveLIFNode(3.0, 0.1, 0.2, 4.0, 0.5, 0.6, 0.7, None, surrogate.ATan(), True).b == 0.6
    assert neuron.ILIFNode(3.0, 0.5, surrogate.MultiLevelSpikeCount(2), True, "s").v_threshold == 0.5
    assert neuron.QIFNode(3.0, 0.5, 0.6, 0.7, 0.1, None, surrogate.ATan(), True).v_rest == 0.1


@every_backend
@every_node
def test_equals_the_loop(name, backend, device):
    x = current((23, 4, 5), torch.float64, device)
    node = make(name, backend, store_v_seq=True)
    s, (s_loop, *states) = node(x), by_loop(name, x.cpu())
    assert torch.equal(s.cpu(), s_loop) and 0.02 < s.mean() < 3
    torch.testing.assert_close(node.v_seq.cpu(), states[0], rtol=1e-12, atol=1e-12)
    for attribute, expected in zip(node.state_names, states, strict=True):
        torch.testing.assert_close(getattr(node, attribute).cpu(), expected[-1], rtol=1e-12, atol=1e-12)


def test_an_adaptive_neuron_that_does_not_adapt_is_lif():
    x = current((9, 50), torch.float64)
    function = surrogate.Sigmoid(4.0)
    lif = neuron.LIFNode(surrogate_function=function, backend="torch")
    assert torch.equal(neuron.AdaptiveLIFNode(backend="torch")(x), lif(x))


@every_spec
def test_smooth_twin_passes_gradcheck(name):
    """With a smooth function in place of the spike, the reference has true derivatives."""
    spec = SPECS[name]
    spec = NeuronSpec(spec.kind, SMOOTH, spec.tau, spec.decay_input, spec.v_threshold, spec.v_reset, False, spec.extra)
    x = current((4, 2, 3), torch.float64, scale=0.8).requires_grad_()
    leaves = [state_of(spec, (2, 3), torch.float64), learnt_of(spec, 3, torch.float64)]
    leaves = [t.requires_grad_() for t in leaves if t is not None]
    assert torch.autograd.gradcheck(lambda x, *rest: reference.multistep(x, spec, *rest), (x, *leaves))


def test_spike_counts():
    """Halves go to even numbers; the gradient is 1 inside the window, its ends included."""
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 1.5, 2.5, 3.7, 4.0, 4.2, 9.0], requires_grad=True)
    for counts, inside in (
        (surrogate.MultiLevelSpikeCount(), [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]),
        (surrogate.MultiLevelSpikeCount(4, (-0.5, 3.7)), [0, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
    ):
        n = counts(x)
        assert n.tolist() == [0, 0, 0, 0, 2, 2, 4, 4, 4, 4]
        (grad,) = torch.autograd.grad(n.sum(), x)
        assert grad.tolist() == inside
    assert "MultiLevelSpikeCount" not in surrogate.__all__


# ---- the compiled kernels against the reference


@every_spec
def test_dtypes_losses_and_time_steps(name, device):
    """A selection that holds every pair of options."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for T, dtype, loss, sequence, start in pairwise(
        (1, 4, 7, 16, 17, 33), dtypes, ("s", "v", "sv"), (False, True), (False, True)
    ):
        x = current((T, 2, 3, 41), dtype, device)
        state = state_of(SPECS[name], x.shape[1:], dtype, device) if start else None
        learnt = learnt_of(SPECS[name], 3 if sequence else 1, dtype, device)
        compare(SPECS[name], x, "native", state=state, learnt=learnt, loss=loss, sequence=sequence)


@every_spec
def test_many_time_steps(name, device):
    compare(
        SPECS[name], current((500, 1, 2, 3), device=device), "native", learnt=learnt_of(SPECS[name], 2, device=device)
    )


@every_spec
def test_layouts(name, device):
    """channels_last, a slice, and one image for all time-steps, without a copy or with one."""
    images = current((20, 3, 4, 5, 6), device=device)
    learnt = learnt_of(SPECS[name], 4, device=device)
    last = images.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (20, 3))
    for x in (last, images[0].expand(20, 3, 4, 5, 6), images[:, :, :, 1:4, ::2], images.transpose(1, 3)[..., :4, :, :]):
        compare(SPECS[name], x if x.shape[2] == 4 else x.transpose(1, 3), "native", learnt=learnt, sequence=True)


@every_spec
def test_sizes(name, device):
    """Results do not depend on the width of vectors or the size of blocks."""
    for M in (1, 7, 8, 1023, 1025, 5000):
        compare(
            SPECS[name], current((5, 1, M), device=device), "native", learnt=learnt_of(SPECS[name], 1, device=device)
        )


@every_spec
def test_empty_batch(name, device):
    x, learnt = torch.empty(4, 0, 3, device=device), learnt_of(SPECS[name], 3, device=device)
    s, out, grads = run(SPECS[name], x, "native", learnt=learnt)
    assert s.shape == x.shape and out.shape[-2:] == (0, 3) and grads[0].shape == x.shape
    assert learnt is None or (grads[1].shape == (2, 3) and not grads[1].any())


@every_spec
def test_the_same_bits_for_any_number_of_threads(name, device):
    x, learnt = current((20, 4, 5, 1000), device=device), learnt_of(SPECS[name], 5, device=device)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            s, out, grads = run(SPECS[name], x, "native", learnt=learnt)
            results.append((s, out, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: neuron.LIFNode(v_threshold=1e39), ValueError, "v_threshold must be finite in float32"),
        (lambda: neuron.LIFNode(v_threshold=1e39, learn_threshold=True), ValueError, "v_threshold must be finite in"),
        (lambda: neuron.IFNode(v_reset=-1e39), ValueError, "v_reset must be finite in float32"),
        (lambda: neuron.ILIFNode(v_threshold=1e-300), ValueError, "v_threshold must be above 0"),
        (lambda: surrogate.MultiLevelSpikeCount(4, (1,)), TypeError, "grad_window must be"),
        (lambda: surrogate.MultiLevelSpikeCount(4, 3), TypeError, "grad_window must be"),
        (lambda: setattr(neuron.AdaptiveLIFNode(), "w", torch.nn.Parameter(torch.ones(3))), TypeError, "w is a state"),
    ],
)
def test_wrong_numbers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
