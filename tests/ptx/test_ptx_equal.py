"""nvcc's kernels compared with those of the C++ compiler, bit for bit; and faults that are put into nvcc's."""

import copy
import itertools

import host
import pytest
import test_bn_kernels
import test_pool_kernels
import torch
from bn_host import Block
from cases import assert_close, current, pairwise, run
from machine import Machine
from test_kernels import NEURONS, SURROGATES, OnHost, arguments
from thorough import THOROUGH

DTYPES = (torch.float32, torch.bfloat16)
#: Surrogates whose kernels compute an exponential.
EXPONENTIAL = ("Sigmoid", "PiecewiseExp", "Erf")


def both(machine, call):
    """Returns the results of a call with the kernels of the C++ compiler, and with nvcc's."""
    on_host = call()
    with machine.run():
        return on_host, call()


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_host_bit_for_bit(machine, dtype, neuron):
    """Division is exact here. Only surrogates with an exponential differ: by expf's 2 ulp on a GPU, and those of the
    host's formula. Every pair of options; in a thorough run every combination."""
    same, combine = 0, itertools.product if THOROUGH else pairwise
    for T, sigma, detach, M in combine((3, 4, 16), SURROGATES, (True, False), (72, 13)):
        name, x, settings = arguments(neuron, dtype, "cpu", (T, M), with_v=True)
        settings |= {"detach_reset": detach, "loss": "sv", "surrogate_function": sigma}
        (s, v, grads), (s_ptx, v_ptx, grads_ptx) = both(machine, lambda: run(name, x, host.multistep, **settings))  # noqa: B023
        assert torch.equal(s, s_ptx) and torch.equal(v, v_ptx)
        equal = [torch.equal(a, b) for a, b in zip(grads, grads_ptx, strict=True)]
        same += all(equal)
        if type(sigma).__name__ in EXPONENTIAL:
            for a, b in zip(grads[:2], grads_ptx[:2], strict=True):
                assert_close(b, a, T)
        else:
            assert all(equal), sigma
    assert same


def results(of):
    """Returns the tensors among the attributes of an object, or among objects."""
    if isinstance(of, tuple):
        return {(i, name): t for i, part in enumerate(of) for name, t in results(part).items()}
    if torch.is_tensor(of):
        return {"": of}
    return {name: t for name, t in getattr(of, "__dict__", {}).items() if torch.is_tensor(t)}


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_is_equal_to_the_host_bit_for_bit(machine, dtype, channels_last):
    """Statistics, forward, packed spikes, gradients and sums."""
    for T, connect in itertools.product((3, 16), test_bn_kernels.CONNECTIONS):
        block = Block(neuron="lif", connect=connect, channels_last=channels_last)
        compare = lambda: test_bn_kernels.compare(block, dtype, (T, 2, 72, 4, 4), bits=True)[:2]  # noqa: B023, E731
        on_host, executed = (results(r) for r in both(machine, compare))
        assert len(executed) >= 6 and executed.keys() == on_host.keys()
        for name, t in executed.items():
            assert torch.equal(t, on_host[name]), (T, connect, name)


@pytest.mark.parametrize("order", test_pool_kernels.ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_stem_is_equal_to_the_host_bit_for_bit(machine, dtype, order):
    case = test_pool_kernels.stem((1, 8, 17, 20), dtype, order, "lif_tau3")
    on_host, executed = (results(r) for r in both(machine, lambda: test_pool_kernels.compare(case, "cuda")))
    assert len(executed) >= 3 and all(torch.equal(t, on_host[name]) for name, t in executed.items())


def worst(s):
    """Divisions and exponentials as wrong as a GPU's may be."""
    if s.opcode in ("div.approx.ftz.f32", "ex2.approx.ftz.f32"):
        s.opcode += "/worst"


def test_the_errors_that_a_gpu_may_make_are_within_the_bounds(machine):
    """The comparisons of tests/native, which a GPU has to pass too, with every division wrong by up to 2 ulp."""
    x = current((4, 264))
    exact = run("lif", x, host.multistep)[2][0]
    with edited(machine, worst).run():
        assert not torch.equal(exact, run("lif", x, host.multistep)[2][0])
        for neuron, dtype, sigma, T in itertools.product(("if", "lif_tau3"), DTYPES, SURROGATES, (4, 16)):
            name, x, settings = arguments(neuron, dtype, "cpu", (T, 72), with_v=True)
            OnHost().compare(name, x, loss="sv", surrogate_function=sigma, **settings)
        for connect, dtype in itertools.product(test_bn_kernels.CONNECTIONS, DTYPES):
            test_bn_kernels.compare(Block(neuron="lif", connect=connect), dtype, (4, 2, 72, 4, 4))


# ---- faults that are put into what nvcc wrote


def swap_halves(s):
    """cvt.rn.bf16x2 with its two numbers in the wrong order."""
    if s.opcode == "cvt.rn.bf16x2.f32":
        s.operands[1:] = s.operands[:0:-1]


def wrong_predicate(s):
    """selp takes the other of its two numbers."""
    if s.opcode.startswith("selp.f32"):
        s.operands[1:3] = s.operands[2:0:-1]


def unguarded(s):
    """Branches where the condition is false."""
    s.negated = not s.negated if s.opcode == "bra" and s.guard else s.negated


def wrong_width(s):
    """Stores 8 of 16 bytes."""
    if s.opcode == "st.global.v4.b32":
        s.opcode = "st.global.v2.b32"
        s.operands[1] = "{" + ",".join(s.operands[1].strip("{}").split(",")[:2]) + "}"


def edited(machine, change, select=lambda kernel: kernel.statements):
    """Returns a machine whose kernels have the statements that ``select`` returns, each changed by ``change``."""

    def edit(kernel):
        statements = copy.deepcopy(list(select(kernel)))
        for s in statements:
            change(s)
        return statements

    return Machine(machine.listing, edit)


@pytest.mark.parametrize(
    "change, dtype",
    [
        (swap_halves, torch.bfloat16),
        (wrong_predicate, torch.float32),
        (unguarded, torch.float32),
        (wrong_width, torch.bfloat16),
    ],
)
def test_planted_faults_are_found(machine, change, dtype):
    x = current((4, 64), dtype)
    call = lambda: run("lif", x, host.multistep)  # noqa: E731
    (s, _, grads), (s_ptx, _, grads_ptx) = both(machine, call)
    assert torch.equal(s, s_ptx) and torch.equal(grads[0], grads_ptx[0])
    with edited(machine, change).run():
        try:
            s_bad, _, grads_bad = call()
        except RuntimeError:
            return
    assert not (torch.equal(s, s_bad) and torch.equal(grads[0], grads_bad[0]))


def test_every_kernel_is_assembled(machine):
    """The machine knows every operation that nvcc has written: assembles one statement of each kind."""
    names = machine.listing.names()
    assert len(names) > 100
    one_of_each = edited(machine, lambda s: None, lambda kernel: {s.opcode: s for s in kernel.statements}.values())
    for name in names:
        one_of_each.assemble(name)
