"""Counts the bytes that the kernels move per element and time-step (docs/kernels.md), and the size of each access."""

import bn_host
import host
import kinds
import pytest
import torch
from cases import current

T, M = 4, 4096
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
neurons = pytest.mark.parametrize("name", ("if", "lif", "plif"))


def moved(report, leave_out=()):
    """Returns the bytes of loads and stores by buffer, without buffers that are not accessed."""
    total = {}
    for accesses in (report["loads"], report["stores"]):
        for name, by_size in accesses.items():
            total[name] = total.get(name, 0) + sum(size * count for size, count in by_size.items())
    return {name: count for name, count in total.items() if count and name not in leave_out}


def forward_backward(name, x, learn_leak=True, **settings):
    """Returns the reports of forward and backward, and the tensors that are kept between them."""
    host.reports.clear()
    x = x.requires_grad_()
    w = torch.tensor(0.3).requires_grad_(learn_leak) if name == "plif" else None
    s, _ = host.multistep(name, x, None, w, **settings)
    s.backward(current(s.shape, s.dtype, seed=3))
    return host.reports[0], host.reports[1]


@neurons
@pytest.mark.parametrize("T", (3, 4, 5, 8, 13, 16))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_budget(name, dtype, T):
    """Forward reads x and writes s, backward reads x and grad_s and writes grad_x: 4 and 6 B/el in half precision, 8
    and 12 in fp32. The final v, asked for, is one row more."""
    size = dtype.itemsize
    forward, backward = forward_backward(name, current((T, M), dtype), store_v=False)
    assert moved(forward, ("leak",)) == {"x": size * T * M, "s": size * T * M}
    assert moved(backward, ("leak", "partials", "grad_leak")) == dict.fromkeys(("x", "grad_s", "grad_x"), size * T * M)
    forward, _ = forward_backward(name, current((T, M), dtype))
    assert moved(forward, ("leak",)) == {"x": size * T * M, "s": size * T * M, "v": 4 * M}


@neurons
def test_reductions_cost_next_to_nothing(name):
    """PLIF: each thread loads the leak once, from the cache; one double per block is written and read."""
    _, backward = forward_backward(name, current((T, 64 * 1024)))
    if name == "plif":
        blocks = backward["launches"][0][1]
        assert moved(backward)["partials"] == 16 * blocks
        assert moved(backward)["partials"] < 1e-3 * sum(moved(backward).values())
        assert backward["stores"]["grad_leak"] == {4: 1}
    else:
        assert not {"leak", "partials", "grad_leak"} & set(backward["loads"])


@neurons
def test_nothing_is_kept_but_x(name):
    """No checkpoints up to T = 16; above, one row of potentials per 16 time-steps."""
    for steps, rows in ((4, 0), (16, 0), (17, 1), (33, 2), (500, 31)):
        forward, backward = forward_backward(name, current((steps, 256)))
        assert moved(forward).get("checkpoints", 0) == moved(backward).get("checkpoints", 0) == 4 * 256 * rows
        assert moved(backward)["x"] == 4 * steps * 256


@neurons
def test_inference(name):
    """4 B/el in half precision, and no checkpoints for any T."""
    for steps in (4, 500):
        host.reports.clear()
        with torch.no_grad():
            w = torch.tensor(0.3) if name == "plif" else None
            host.multistep(name, current((steps, 512), torch.bfloat16), None, w, store_v=False)
        assert moved(host.reports[0], ("leak",)) == {"x": 2 * steps * 512, "s": 2 * steps * 512}


@neurons
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", (4, 16))
def test_portions(name, dtype, steps):
    """Aligned operands move in accesses of 16 bytes; backward over more than four time-steps holds four neurons a
    thread (registers), 8 bytes in half precision."""
    forward, backward = forward_backward(name, current((steps, M), dtype), store_v=False)
    portion = 16 if steps <= 4 else 4 * dtype.itemsize
    assert forward["loads"]["x"] == forward["stores"]["s"] == {16: steps * M * dtype.itemsize // 16}
    expected = {portion: steps * M * dtype.itemsize // portion}
    assert backward["loads"]["x"] == backward["loads"]["grad_s"] == backward["stores"]["grad_x"] == expected


@pytest.mark.parametrize("case", kinds.CASES)
@pytest.mark.parametrize("steps", (3, 4, 5, 16, 17, 33))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_budget_of_other_neurons(case, dtype, steps):
    """The same as for IF and LIF: no state and no spike is read or written more than once. Each state of a checkpoint
    is one row."""
    host.reports.clear()
    kinds.run(
        kinds.on_host, kinds.spec(case), current((steps, M), dtype), w=kinds.learnt(case, dtype), loss="s", v_mode=1
    )
    forward, backward = host.reports
    size, states = dtype.itemsize, kinds.states(case)
    kept = {"checkpoints": 4 * M * states * ((steps - 1) // 16)} if steps > 16 else {}
    expected = {"x": size * steps * M, "s": size * steps * M, "v": 4 * M * states}
    assert moved(forward, ("leak",)) == expected | kept
    expected = dict.fromkeys(("x", "grad_s", "grad_x"), size * steps * M)
    assert moved(backward, ("leak", "partials", "grad_leak")) == expected | kept


@pytest.mark.parametrize("case", [case for case in kinds.CASES if kinds.learnt(case, torch.float32) is not None])
def test_learnt_parameters_cost(case):
    """Shared by all neurons: one double per parameter and block is written and read. One for each channel: a row per
    parameter is written and read, and beside these each block of channels leaves a few sums."""
    for steps, C in ((4, 1), (4, 16), (17, 16)):
        host.reports.clear()
        x = current((steps, 4, C, 4096 // C))
        kinds.run(kinds.on_host, kinds.spec(case), x, w=kinds.learnt(case, x.dtype, C), loss="s", v_mode=0)
        _, backward = host.reports
        total, (_, blocks, _) = moved(backward), backward["launches"][0]
        if C == 1:
            assert total["partials"] == 2 * 16 * blocks and "elements" not in total
        else:
            assert total["elements"] == 2 * 2 * 4 * x[0].numel()
            assert total["partials"] <= 2 * 2 * 4 * C * (backward["launches"][1][1] // C)
        assert total["grad_leak"] == 2 * 4 * C


def test_repeated_input_is_one_row():
    """A still image: T times the accesses of a row, all to the same row of memory."""
    x = current((1, M)).expand(T, M)
    host.reports.clear()
    host.multistep("if", x)
    assert sum(host.reports[0]["loads"]["x"].values()) == T * M // 4


def test_batch_norm_budget():
    """bf16, channels_last, T = 4, 64 channels, B/el: statistics 2, forward 4, reduce 4, apply 6, which makes 16. A
    shortcut that is read costs 2 in each pass that reads it, and its gradient, where it is written, 2.

    Beside that, a block loads its channels' parameters once, and leaves partial sums that are read once: 33 bytes for
    each of its channels at most, and its counters. There are at most 2048 blocks, however much there is to do: 4 MB,
    most of it from the cache, beside the 200 to 500 of a batch of 64 in the first stage of a SEW-ResNet.
    """
    images, C, size = 3, 64, 56
    row = images * C * size * size
    z = current((T, images, C, size, size), torch.bfloat16)
    for connect, forward, reduce, apply in ((None, 4, 4, 6), ("add", 6, 4, 6), ("and", 6, 6, 10)):
        kernels = bn_host.Kernels(bn_host.Block(connect=connect))
        norm = bn_host.SimpleNamespace(mean=None, var=None, weight=torch.ones(C), bias=torch.zeros(C))
        norm.mean, norm.var = kernels.statistics(z)
        shortcut = None if connect is None else (z > 1).to(z.dtype)
        kept = kernels.forward(z, shortcut, norm, want_v=False)
        kernels.backward(z, shortcut, norm, z, kept)
        budget = {"statistics": 2, "forward": forward, "reduce": reduce, "apply": apply}
        big = ("z", "shortcut", "out", "grad_out", "grad_z", "grad_shortcut")
        for kernel, bytes_per_element in budget.items():
            report = kernels.reports[kernel]
            by_buffer = moved(report)
            blocks = report["launches"][0][1]
            if kernel == "statistics":  # it also reads the first value of each channel
                by_buffer["z"] -= 2 * C * (blocks + 1)
            assert sum(by_buffer.pop(name, 0) for name in big) == T * row * bytes_per_element, (connect, kernel)
            assert blocks <= 2048 and sum(by_buffer.values()) <= (blocks + 1) * (33 * C + 16), (connect, kernel)


@pytest.mark.parametrize("case", kinds.CASES)
def test_batch_norm_budget_of_other_neurons(case):
    """The same numbers as test_batch_norm_budget, for each neuron with parameters for each channel."""
    images, C, size = 3, 64, 28
    row = images * C * size * size
    z = current((T, images, C, size, size), torch.bfloat16)
    for connect, forward, reduce, apply in ((None, 4, 4, 6), ("add", 6, 4, 6), ("add_before", 6, 6, 10)):
        block = kinds.block(case, C, connect=connect)
        kernels = bn_host.Kernels(block)
        norm = bn_host.SimpleNamespace(mean=None, var=None, weight=torch.ones(C), bias=torch.zeros(C))
        norm.mean, norm.var = kernels.statistics(z)
        shortcut = None if connect is None else (z > 1).to(z.dtype)
        leak = None if block.leak is None else block.leak.float()
        kept = kernels.forward(z, shortcut, norm, leak, want_v=False)
        kernels.backward(z, shortcut, norm, z, kept, leak)
        big = ("z", "shortcut", "out", "grad_out", "grad_z", "grad_shortcut")
        for kernel, bytes_per_element in {"forward": forward, "reduce": reduce, "apply": apply}.items():
            by_buffer = moved(kernels.reports[kernel])
            blocks = kernels.reports[kernel]["launches"][0][1]
            assert sum(by_buffer.pop(name, 0) for name in big) == T * row * bytes_per_element, (connect, kernel)
            # Its learnt parameters and the sums of their gradients make twice as many as those of the norm.
            assert blocks <= 2048 and sum(by_buffer.values()) <= (blocks + 1) * (66 * C + 32), (connect, kernel)


def test_batch_norm_portions():
    """bf16: statistics and forward by 16 bytes, backward by 8; by 4 for more than eight time-steps where the
    registers do not suffice (reduce, and unusual options). Bits by bytes."""
    for steps, detach, portion in ((4, False, 8), (8, False, 8), (8, True, 8), (16, False, 4), (16, True, 8)):
        z = current((steps, 1, 64, 4, 4), torch.bfloat16)
        kernels = bn_host.Kernels(bn_host.Block(detach_reset=detach))
        norm = bn_host.SimpleNamespace(mean=None, var=None, weight=None, bias=None)
        norm.mean, norm.var = kernels.statistics(z)
        kept = kernels.forward(z, None, norm, want_v=False, bits=True)
        kernels.backward(z, None, norm, z, kept)
        reports, size = kernels.reports, z.numel() * 2
        assert reports["forward"]["loads"]["z"] == reports["forward"]["stores"]["out"] == {16: size // 16}
        assert reports["statistics"]["loads"]["z"][16] == size // 16
        assert reports["forward"]["stores"]["bits"] == {1: size // 16}
        for kernel, by in (("reduce", 4 if steps > 8 else 8), ("apply", portion)):
            assert reports[kernel]["loads"]["z"] == reports[kernel]["loads"]["grad_out"] == {by: size // by}
        assert reports["apply"]["stores"]["grad_z"] == {portion: size // portion}
