"""No arguments of an op end the process: every call returns a result or raises an error."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sewsnn.ops.load import NATIVE_ERROR

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(NATIVE_ERROR is not None, reason="without the compiled library")

OPS = """
import torch
from sewsnn import functional, layers, neuron
from sewsnn.ops.registry import KINDS
ops = torch.ops.sewsnn
NEURON = dict(
    kind=0, tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0, surrogate=0, alpha=2.0, detach_reset=True
)
ILIF = [4.0, 1.0, 1.0, 1.0]  # its further numbers
NORM = dict(statistics=None, weight=None, bias=None, leak=None)
x, still = torch.rand(2, 3, 8), torch.rand(3, 8)
image, pooled = torch.rand(2, 3, 6, 6), torch.rand(4, 2, 3, 3, 3)
CALLS = {
    "neuron_forward": dict(x=x, v=None, leak=None, **NEURON, v_mode=1, needs_grad=True),
    "neuron_backward": dict(
        grad_s=x, grad_v=None, x=x, v=None, leak=None, checkpoints=torch.zeros(0), **NEURON, v_mode=1, need_v=True,
        need_leak=False,
    ),
    "bn_statistics": dict(z=x, T=0, check=True),
    "bn_update": dict(
        statistics=torch.ones(2, 8), momentum=0.1, count=6.0, running_mean=torch.zeros(8), running_var=torch.ones(8)
    ),
    "bn_neuron_forward": dict(
        z=x, shortcut=None, **NORM, eps=1e-5, connect=0, T=0, **NEURON, v_mode=1, needs_grad=True, pack=True,
        training=True,
    ),
    "bn_neuron_reduce": dict(
        grad_out=x, grad_skip=None, z=x, shortcut=None, **NORM, checkpoints=torch.zeros(0), eps=1e-5, connect=0, T=0,
        **NEURON, need_leak=False,
    ),
    "bn_neuron_apply": dict(
        grad_out=x, z=x, shortcut=None, **NORM, checkpoints=torch.zeros(0), sums=None, count=6.0, eps=1e-5, connect=0,
        T=0, **NEURON, need_shortcut=False,
    ),
    "unpack_spikes": dict(bits=torch.zeros(6, dtype=torch.uint8), sizes=[2, 24], strides=[24, 1], dtype=torch.float32),
    "bn_neuron_pool_forward": dict(z=image, **NORM, eps=1e-5, T=4, **NEURON, training=True),
    "bn_neuron_pool_reduce": dict(grad_out=pooled, z=image, **NORM, eps=1e-5, T=4, **NEURON, need_leak=False),
    "bn_neuron_pool_apply": dict(
        grad_out=pooled, z=image, **NORM, sums=None, count=6.0, eps=1e-5, T=4, **NEURON
    ),
}
def call(name, meta=False, **changes):
    values = {**CALLS[name], **changes}.values()
    return getattr(ops, name)(*(v.to("meta") if meta and isinstance(v, torch.Tensor) else v for v in values))
def attempt(f):
    try:
        f()
        return "no error"
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", OPS + code], cwd=HERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    return done.stdout.splitlines()


LARGE, CANNOT, DEVICE = (
    "too large: 64 bits",
    "can't allocate memory: it tried to allocate 1099511627776 bytes",
    "device",
)
NO_MEMORY, STEPS = "its storage was freed", "time-steps at most"
WHOLE = "torch.zeros(1, 1).expand(2**21, 2**41 + 1)"  # 2**62 + 2**21 numbers
CASES = [
    (f"functional.if_multistep({WHOLE})", LARGE),
    ("functional.lif_multistep(torch.zeros(1, 1).half().expand(2**20, 2**41 + 1), store_v_seq=True)",
     "can't allocate memory"),
    (f"functional.if_multistep({WHOLE}, backend='torch')", LARGE),
    ("functional.if_multistep(torch.zeros(1, 1).expand(2**40, 1), backend='torch')", "can't allocate memory"),
    (f"functional.if_multistep({WHOLE}.to('meta'))", LARGE),
    (f"functional.if_multistep({WHOLE}.to('meta'), backend='torch')", LARGE),
    ("functional.if_multistep(torch.zeros(1, 1).expand(2**8, 2**30))", CANNOT),
    ("functional.if_multistep(torch.zeros(1, 1).expand(2**30, 2**8))", CANNOT),
    ("call('neuron_forward', x=torch.zeros(1, 1).expand(2**61, 1))", STEPS),
    ("layers.BNNeuron(8, neuron.IFNode()).eval()(still, T=2**62)", LARGE),
    ("layers.BNNeuron(8, neuron.IFNode(backend='torch')).eval()(still, T=2**40)", "can't allocate memory"),
    ("call('bn_neuron_forward', z=still, T=2**62, pack=False)", LARGE),
    ("call('bn_neuron_forward', z=still, T=2**40, pack=False)", STEPS),
    ("call('bn_neuron_forward', z=still.to('meta'), T=2**62)", LARGE),
    # With this many blocks of time-steps, a 64-bit count overflows to 0.
    ("call('bn_neuron_apply', z=torch.zeros(1, 1), grad_out=torch.zeros(1, 1, 1).expand(2**54, 1, 1), T=2**54, "
     "kind=-1)", STEPS),
    ("call('bn_neuron_reduce', z=torch.zeros(2, 0, 2**62), grad_out=torch.zeros(2, 0, 2**62))", LARGE),
    ("call('bn_neuron_pool_forward', z=torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 2, 2**18))",
     "can't allocate memory: it tried to allocate 2305843009213693952 bytes"),
    ("call('bn_neuron_pool_forward', z=torch.zeros(1, 1, 1, 1).expand(1, 2**31, 1, 1))", r"at most 2**30"),
    ("call('unpack_spikes', bits=torch.zeros(0, dtype=torch.uint8), sizes=[2**32, 2**32], strides=[2**32, 1])", LARGE),
    ("call('unpack_spikes', bits=torch.zeros(8, dtype=torch.uint8), sizes=[2**31, 2**30, 8], strides=[8, 8, 1])",
     LARGE),
    ("call('unpack_spikes', bits=torch.zeros(1, dtype=torch.uint8), sizes=[2, 2, 2], strides=[1, 1, 5])", "dense"),
    ("call('unpack_spikes', dtype=torch.int64)", "dtype must be"),
    ("call('neuron_forward', v=torch.zeros(3, 8, device='meta'))", DEVICE),
    ("call('neuron_forward', leak=torch.tensor(0.5, device='meta'))", DEVICE),
    ("call('neuron_backward', checkpoints=torch.zeros(0, device='meta'))", DEVICE),
    ("call('neuron_backward', grad_v=torch.zeros(3, 8, device='meta'))", DEVICE),
    ("call('bn_update', running_var=torch.ones(8, device='meta'))", DEVICE),
    ("call('bn_update', count=1.0)", "more than one value"),
    ("call('bn_neuron_forward', weight=torch.ones(8, device='meta'))", DEVICE),
    ("call('bn_neuron_reduce', checkpoints=torch.zeros(0, device='meta'))", DEVICE),
    ("call('bn_neuron_apply', sums=torch.zeros(2, 8, device='meta'))", DEVICE),
    ("call('bn_neuron_pool_apply', sums=torch.zeros(2, 3, device='meta'))", DEVICE),
    ("x.untyped_storage().resize_(0); call('neuron_forward')", NO_MEMORY),
    ("image.untyped_storage().resize_(0); call('bn_neuron_pool_forward')", NO_MEMORY),
    ("s = torch.ones(2, 8); s.untyped_storage().resize_(0); call('bn_update', statistics=s)", NO_MEMORY),
    *((f"call('{op}', alpha={alpha})", "parameter must be positive")
      for op in ("neuron_forward", "bn_neuron_forward", "bn_neuron_pool_forward")
      for alpha in ("0.0", "-1.0", "float('nan')", "float('inf')")),
    ("call('neuron_forward', kind=1, tau=float('inf'))", "tau must be"),
    ("call('bn_neuron_forward', eps=float('nan'))", "eps must be"),
    *((f"call('{op}', kind={kind}{meta})", f"unknown neuron kind {kind}")
      for op, kinds in (("neuron_forward", (-1, 3)), ("neuron_backward", (-1, 3)), ("bn_neuron_forward", (-2, 3)),
                        ("bn_neuron_reduce", (-2, 3)), ("bn_neuron_apply", (-2, 3)),
                        ("bn_neuron_pool_forward", (-1, 3)),
                        ("bn_neuron_pool_reduce", (-1, 3)), ("bn_neuron_pool_apply", (-1, 3)))
      for kind in kinds for meta in ("", ", meta=True")),
    *((f"call('{op}', surrogate={kind}{meta})", f"unknown surrogate kind {kind}")
      for op in ("neuron_forward", "neuron_backward", "bn_neuron_forward", "bn_neuron_reduce", "bn_neuron_apply",
                 "bn_neuron_pool_forward", "bn_neuron_pool_reduce", "bn_neuron_pool_apply")
      for kind in (-1, 10) for meta in ("", ", meta=True")),
    *((f"call('bn_neuron_forward', connect={connect}{meta})", f"unknown connection {connect}")
      for connect in (-1, 5) for meta in ("", ", meta=True")),
    *((f"call('{op}', kind=KINDS['{kind}'].number, extra={extra}{meta})", f"{count} extra numbers, got {len(extra)}")
      for op in ("neuron_forward", "neuron_backward", "bn_neuron_forward", "bn_neuron_reduce", "bn_neuron_apply")
      for kind, count, extra in (("CUBALIF", 2, []), ("CUBALIF", 2, [2.0] * 9), ("IF", 0, [1.0]))
      for meta in ("", ", meta=True")),
    *((f"call('{op}', kind=KINDS['ILIF'].number, v_reset=None, shortcut=x, connect={connect}, {pack}extra=ILIF{meta})",
       "AND and IAND need spikes that are 0 or 1")
      for op, pack in (("bn_neuron_forward", "pack=False, "), ("bn_neuron_reduce", ""), ("bn_neuron_apply", ""))
      for connect in (2, 3) for meta in ("", ", meta=True")),
    *((f"call('bn_neuron_forward', kind={kind}, v_reset=None, {meta})", "packed")
      for kind in ("KINDS['ILIF'].number, extra=ILIF", -1) for meta in ("", "meta=True")),
    *((f"call('{op}', kind=KINDS['{kind}'].number, v_reset=None{meta})", "bn_neuron_pool has no kernels for")
      for op in ("bn_neuron_pool_forward", "bn_neuron_pool_reduce", "bn_neuron_pool_apply")
      for kind in ("ILIF", "CUBALIF") for meta in ("", ", meta=True")),
    ("call('neuron_forward', v_mode=-1)", "v_mode must be"),
]  # fmt: skip


def test_no_call_ends_the_process():
    """Byte counts beyond 64 bits, more memory than there is, tensors elsewhere or without memory, numbers that mean
    nothing: an error that says so."""
    code = "\n".join(
        f"def case():\n    {case}\nprint(attempt(case))\nx, image = torch.rand(2, 3, 8), torch.rand(2, 3, 6, 6)\n"
        "CALLS['neuron_forward']['x'] = x\nCALLS['bn_neuron_pool_forward']['z'] = image"
        for case, _ in CASES
    )
    said = run(code)
    wrong = [(case, is_) for (case, expected), is_ in zip(CASES, said, strict=True) if expected not in is_]
    assert not wrong, "\n".join(map(str, wrong))


FUZZ = """
import random
choose = random.Random(0)
freed = torch.rand(2, 3, 8)
freed.untyped_storage().resize_(0)
strange = [
    None, x.double(), x.half(), x.int(), x[0], x[:0], x[:, :0], x.mT, x.to("meta"), x[:1].expand(2, 3, 8), x[..., ::2],
    x[:, :1].expand(2, 3, 8), freed, torch.zeros(0), torch.tensor(1.0), torch.zeros(20, 3, 8), torch.zeros(2, 8),
    torch.zeros(8), torch.zeros(3), torch.zeros(2, 3), x.to_sparse(), image, pooled,
    image.to(memory_format=torch.channels_last), torch.zeros(1, 1).expand(2**21, 2**41 + 1),
    torch.zeros(1, 1, 1).expand(2**40, 3, 8), torch.zeros(1, 1).expand(2**20, 2**20),
]
numbers = [-1, 0, 1, 2, 3, 4, 7, 17, 2**31, 2**54, 2**62, 0.0, -1.0, 1.5, float("nan"), float("inf"), 1e300, None]
lists = [[], [0], [-1, 2], [2, 24], [24, 1], [1, 24], [2**32, 2**32], [48], [1]]
done = errors = 0
for _ in range(4000):
    name = choose.choice(list(CALLS))
    changes = {}
    for key in choose.sample(list(CALLS[name]), choose.choice([1, 1, 2, 3])):
        old = CALLS[name][key]
        kind = "t" if isinstance(old, torch.Tensor) or old is None else "l" if isinstance(old, list) else "n"
        changes[key] = (
            choose.choice([True, False]) if isinstance(old, bool)
            else choose.choice([torch.int64, torch.float64, torch.bool, torch.half]) if isinstance(old, torch.dtype)
            else choose.choice({"t": strange, "l": lists, "n": numbers}[kind])
        )
    if attempt(lambda: call(name, **changes)) == "no error":
        done += 1
    else:
        errors += 1
print(done, errors)
"""


def test_random_calls_of_the_ops():
    """Calls ops with random wrong arguments (fixed seed)."""
    done, errors = map(int, run(FUZZ)[-1].split())
    assert done > 200 and errors > 1000


LIMIT = """
import resource
def limit(megabytes):
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20),) * 2)
"""
KEPT = """
def result(megabytes):
    return functional.if_multistep(torch.zeros(1 << 18).expand(megabytes, 1 << 18), backend="native")[0]
result(300)  # dies, and its memory is kept
limit(200)
print(attempt(lambda: result(400)), attempt(lambda: result(1000)), attempt(lambda: result(20)), sep="\\n")
"""


@pytest.mark.skipif(
    torch.__version__ < "2.11" or not sys.platform.startswith("linux"), reason="torch 2.10 cannot be given memory"
)
def test_memory_that_is_kept_is_not_missed():
    """Memory that is kept for later results is freed before an allocation fails, and the next one succeeds again."""
    first, second, third = run(LIMIT + KEPT)
    assert (first, third) == ("no error", "no error") and f"to allocate {1000 << 20} bytes" in second


WORK = """
torch.set_num_threads(2)
wide = torch.zeros(2, 32, 2, 1 << 17).to(memory_format=torch.channels_last)
call("bn_neuron_pool_forward", z=wide[..., :9])  # threads start
limit(30)  # the result takes 17 MB, a row in work several times 8
print(attempt(lambda: call("bn_neuron_pool_forward", z=wide, T=1)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the size of a process is read from /proc")
def test_no_memory_in_a_thread():
    assert run(LIMIT + WORK) == ["RuntimeError: sewsnn can't allocate memory for the work of an op"]
