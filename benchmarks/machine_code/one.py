"""Prints registers, stalls and the predicted speed of the kernels of one file, for work on a kernel.

    python -m benchmarks.machine_code.one FILE [--kernel WORD ...] [--T STEPS --executed COUNT [--bursts B]
                                          [--hidden H]]

FILE is a .cubin, or a .cu of any checkout, which is compiled for sm_90. --kernel shows only kernels whose title
contains all these words. --executed is the number of SASS instructions that a thread executes (per row, where it
walks over rows) in T time-steps.
"""

import argparse
import re
import tempfile
from pathlib import Path

from benchmarks.machine_code.disassembly import instructions, resources
from benchmarks.machine_code.model import DEVICES, predict
from benchmarks.machine_code.names import PARAMETERS, arguments, demangled, title
from benchmarks.machine_code.tools import disassembled, find_nvcc, find_tool, options, run
from benchmarks.machine_code.traffic import work


def compiled(source: Path, folder: Path) -> Path:
    """Compiles a file of csrc/inst for sm_90."""
    cubin = folder / f"{source.stem}.sm_90.cubin"
    run(find_nvcc(), "-cubin", *options(), f"-I{source.parent.parent}", "-arch=sm_90", "-o", cubin, source)
    return cubin


def kernels(cubin: Path) -> list[tuple[str, dict]]:
    """Returns (title, row) for each kernel of a cubin. The title has template arguments that names.py does not know as
    they are."""
    usage = resources(run(find_tool("cuobjdump"), "-res-usage", cubin).stdout, 90)
    code = instructions(disassembled(cubin))
    names = sorted(code)
    found = []
    for mangled, (kernel, values) in zip(names, demangled(names), strict=True):
        row = {"kernel": kernel} | arguments(kernel, values)
        more = values[len(PARAMETERS.get(kernel, ())) :]
        name = title(row).replace(">", f"; {', '.join(more)}>") if more else title(row)
        found.append((name, row | usage[mangled] | code[mangled]))
    return sorted(found, key=lambda item: item[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--kernel", nargs="+", default=[], help="words of the title")
    parser.add_argument("--T", type=int, default=4, help="time-steps")
    parser.add_argument("--executed", type=float, help="SASS instructions that a thread executes")
    parser.add_argument("--bursts", type=float, help="how often a thread waits for loads")
    parser.add_argument("--hidden", type=float, help="bursts that overlap with the thread's instructions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        is_cubin = arguments.file.suffix == ".cubin"
        rows = kernels(arguments.file if is_cubin else compiled(arguments.file.resolve(), Path(folder)))
    for name, row in rows:
        if not all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", name) for word in arguments.kernel):
            continue
        print(
            f"{name}: {row['registers']} registers, {row['blocks']} blocks, stack {row['stack']}, "
            f"stall {row['stall']:.2f}, ahead {row['ahead']}, static {row['instructions']}"
        )
        if arguments.executed:
            done = work(row, arguments.T, arguments.executed, arguments.bursts, arguments.hidden)
            limits = predict(done, row["blocks"], row["stall"])
            h100 = DEVICES["H100"]
            print(
                f"    T {arguments.T}: bursts {done.bursts:g}, hidden {done.hidden:g}, in flight "
                f"{limits.flying / 1024:.0f} of {limits.needed(h100) / 1024:.1f} KB, issue {limits.issue / 1e12:.1f} "
                f"TB/s, latency {limits.latency / 1e12:.1f} TB/s; of a copy: "
                + ", ".join(f"{n} {limits.share(d):.0%} ({limits.limit(d)})" for n, d in DEVICES.items())
            )


if __name__ == "__main__":
    main()
