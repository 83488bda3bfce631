"""Counts the instructions that the kernels execute, by executing the PTX that nvcc writes.

    python -m tests.ptx.count --out counts.jsonl              all cases
    python -m tests.ptx.count --only bn_reduce --listings DIR  one kernel, and its text with counts

The kernels come from csrc of this repository; ``--csrc DIR`` takes another folder with the same structure, whose params
must have the types that tests/native expects. LIF with tau = 2, ATan, hard reset, detached; channels_last.

Each row: the kernel, T, the rows that a thread works on (bn kernels), and executed PTX instructions per thread, and
per element and time-step (pool kernels: ``per_z`` is per element of z, for all time-steps). For bn kernels ``per_row``
is the difference between threads with more and with fewer rows, and ``prologue`` what remains. An instruction counts
whether its predicate is true or not. These are not the instructions of the GPU: ptxas merges some, and writes
divisions and roots out.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "native"), str(HERE.parent)]

LINE = 128  # bytes of channels in a block's row (csrc/kernels/bn_walk.cuh)
GROUPS = 2400  # more groups of channels than blocks are wanted, so that a thread has all rows of its channels
ROWS = (1, 2, 6)
STEPS = {"forward": (4, 8, 16), "backward": (4, 5, 8, 16), "bn": (4, 8, 16), "pool": (4,)}
BN = ("bn_statistics", "bn_forward", "bn_forward ADD", "bn_reduce", "bn_apply")


def numbers(shape, dtype, seed=0):
    """Returns normal numbers, made by repeating a few."""
    import torch

    few = torch.randn(9973, generator=torch.Generator().manual_seed(seed))
    count = torch.Size(shape).numel()
    return few.repeat(-(-count // len(few)))[:count].view(shape).to(dtype)


class Counter:
    """Runs cases, and collects a row for each."""

    def __init__(self, machine, listings=None):
        self.machine, self.listings, self.rows = machine, listings, []

    def titles(self, names):
        from benchmarks import machine_code

        try:
            return [(machine_code.title(row), row.get("N", 1)) for row in machine_code.described(names)]
        except SystemExit:  # a kernel with other template parameters than benchmarks/machine_code knows
            return [(machine_code.run("c++filt", "-p", text=name).stdout.strip(), None) for name in names]

    def case(self, kernel, T, call, elements=None, every=1, **more):
        """Runs ``call``, which returns the report of a launch of a kernel named ``<kernel>_kernel``. ``elements``:
        numbers in one time-step; None: those of z that were loaded."""
        with self.machine.run(every):
            report = call()
            found = self.machine.executed()
        launched = [name for name, *_ in report["launches"] if f"{kernel}_kernel" in name]
        (name,) = set(launched)
        executed, ((title, N),) = found[name], self.titles([name])
        if elements is None:
            loaded = sum(size * n for size, n in report["loads"]["z"].items() if size >= more["size"] * (N or 1))
            elements = loaded / more["size"] / T
        row = {"kernel": title, "T": T, "rows": None, "threads": executed.threads}
        if kernel.startswith("bn"):
            row["rows"] = elements / executed.threads / N
        row["per_thread"] = executed.instructions / executed.threads
        row["per_element_step"] = executed.instructions / elements / T
        row["elements_per_thread"] = elements / executed.threads
        row |= {key: more[key] for key in ("dtype", "connect") if key in more}
        row["opcodes"] = {op: round(n / executed.threads, 2) for op, n in executed.by_opcode().items()}
        self.rows.append(row)
        if self.listings:
            where = "".join(c if c.isalnum() else "_" for c in f"{title} T{T} rows{row['rows']}")
            (self.listings / f"{where}.txt").write_text(executed.listing())
        print(
            f"{title:75s} T={T:<3d} rows={row['rows'] or '':<4} {row['per_thread']:9.1f} a thread "
            f"{row['per_element_step']:7.2f} an element and time-step",
            flush=True,
        )
        return row


def neuron(counter, kernel, T, dtype):
    import host
    import torch

    # Two blocks of threads with the widest access.
    x = numbers((T, 2 * 128 * 16 // dtype.itemsize), dtype).requires_grad_(kernel == "backward")

    def call():
        host.reports.clear()
        with torch.set_grad_enabled(kernel == "backward"):
            s, _ = host.multistep("lif", x, store_v=False)
        if kernel == "backward":
            s.backward(numbers(s.shape, dtype, seed=1))
        return host.reports[-1]

    counter.case(kernel, T, call, elements=x.shape[1], dtype=str(dtype))


def bn(counter, which, T, dtype):
    """Three launches with different numbers of rows a thread; the last two give the cost of a row."""
    import bn_host
    import torch

    kernel, _, connect = which.partition(" ")
    size, C = dtype.itemsize, GROUPS * LINE // dtype.itemsize
    block = bn_host.Block(neuron="lif", connect=connect.lower() or None)
    state = torch.float32
    norm = SimpleNamespace(mean=torch.zeros(C), var=torch.ones(C), weight=torch.ones(C), bias=torch.full((C,), 0.3))
    assert norm.mean.dtype == state

    def run(pixels):
        steps = 1 if kernel == "bn_statistics" else T
        shape = (steps, 1, C, pixels, 1)
        z = numbers((steps, 1, pixels, 1, C), dtype).permute(0, 1, 4, 2, 3)
        shortcut = None if block.connect is None else (z > 1).to(dtype)
        kernels = bn_host.Kernels(block)

        def call():
            if kernel == "bn_statistics":
                kernels.statistics(z)
            elif kernel == "bn_forward":
                kernels.forward(z, shortcut, norm, want_v=False)
            else:
                kernels.backward(z, shortcut, norm, z, SimpleNamespace(checkpoints=None))
            return kernels.reports[kernel.removeprefix("bn_")]

        assert shape == z.shape
        return counter.case(kernel, steps, call, every=97, size=size, dtype=str(dtype), connect=connect)

    counter.rows, kept = [], counter.rows
    first = run(4)  # one row of pixels for narrow packs
    N = first["elements_per_thread"] / first["rows"]
    depth = int(N) * size  # rows of a block: 128 threads, of which LINE / (N size) are side by side
    counter.rows = kept
    made = [run(depth * rows) for rows in ROWS]
    per_row = (made[2]["per_thread"] - made[1]["per_thread"]) / (made[2]["rows"] - made[1]["rows"])
    for row in made:
        row["per_row"], row["prologue"] = per_row, row["per_thread"] - per_row * row["rows"]


def pool(counter, kernel, T, dtype):
    import pool_host
    import torch

    z = numbers((1, 112, 112, 64), dtype).permute(0, 3, 1, 2)
    norm = [torch.zeros(64), torch.ones(64), torch.ones(64), torch.full((64,), 0.3)]
    stem = pool_host.Stem("lif", z, T, norm)
    grad = numbers((T, 1, 56, 56, 64), dtype, seed=1).movedim(-1, -3)

    def call():
        pool_host.reports.clear()
        if kernel == "pool_forward":
            stem.forward("cuda")
        elif kernel == "pool_reduce":
            stem.reduce("cuda", grad)
        else:
            stem.apply("cuda", grad, torch.ones(2, 64), z.numel() / 64)
        return pool_host.reports[-1]

    # Their unit is an element of z, for all time-steps together.
    row = counter.case(kernel, T, call, elements=z.numel() / T, dtype=str(dtype))
    row["per_z"], row["per_element_step"] = row["per_element_step"], row["per_element_step"] / T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csrc", type=Path, help="the folder of the sources")
    parser.add_argument("--only", nargs="+", default=[], help="kernels: backward bn_reduce pool_apply ...")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--T", nargs="+", type=int, help="other numbers of time-steps")
    parser.add_argument("--out", type=Path, help="write the rows to this file, one JSON object per line")
    parser.add_argument("--listings", type=Path, help="write the text of each kernel with counts to this folder")
    arguments = parser.parse_args()
    csrc = (arguments.csrc or HERE.parents[1] / "csrc").resolve()
    os.environ["SEWSNN_HOST_CSRC"] = str(csrc)
    import torch
    from machine import Machine
    from nvcc import Listing, compiled

    if arguments.listings:
        arguments.listings.mkdir(parents=True, exist_ok=True)
    counter = Counter(Machine(Listing(compiled(csrc))), arguments.listings)
    wanted = [w.replace("_kernel", "") for w in arguments.only]
    every = ["forward", "backward", *BN, "pool_forward", "pool_reduce", "pool_apply"]
    for which in every:
        if wanted and which.split(" ")[0] not in wanted and which not in wanted:
            continue
        family = which.split("_")[0]
        count = {"bn": bn, "pool": pool}.get(family, neuron)
        for T in arguments.T or STEPS[family]:
            if which == "bn_statistics" and (arguments.T or STEPS[family])[0] != T:
                continue  # it has one long time-step
            for dtype in arguments.dtypes:
                count(counter, which, T, getattr(torch, dtype))
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in counter.rows))


if __name__ == "__main__":
    main()
