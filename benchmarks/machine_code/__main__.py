"""Reports the machine code of the CUDA kernels: registers, stack, memory accesses, predicted speed. Needs no GPU.

    python -m benchmarks.machine_code                            reads the kernels of the compiled library
    python -m benchmarks.machine_code --arch 80 90 121           compiles csrc/inst/*.cu for these architectures
    python -m benchmarks.machine_code --arch default --json FILE does so for sm_80, sm_90 and the newest that nvcc knows
    python -m benchmarks.machine_code --predict                  only predicts, from the rows in benchmarks/results
    python -m benchmarks.machine_code.executed                   executes the PTX and counts instructions
    python -m benchmarks.machine_code.one FILE.cu                shows the kernels of one file

The compiler options are those of cmake/cuda.cmake. `cuobjdump` reports registers, stack and shared memory, and
lists the instructions, for which it calls `nvdisasm`. Both programs come with the CUDA toolkit, or from PyPI. The
program keeps compiled files in build/machine_code.

Columns:

- `blocks`: number of blocks of 128 threads that fit on a multiprocessor with these registers.
- `stack`: bytes per thread.
- `local`: number of LDL and STL instructions, which access local memory (spilled registers).
- `generic`: number of LD and ST instructions, which do not name the kind of memory that they access.
- loads and stores: those of global memory, as count x bits.
- `ahead`: the largest number of loads that are in flight before the kernel waits for one of them.
- `stall`: the mean number of cycles that a warp waits after an instruction before it may issue the next.
- `fma`, `dfma`: fused multiply-adds. --fmad=false forbids them except inside the division, the square root and the
  exponential.

A second table predicts the speed of the kernels that serve the shapes of SEW ResNets, from their sm_90 code. model.py
explains the model. Its columns:

- `executed`: instructions that a thread executes, once or per row of its walk; `start`: those before and after them.
- `blocks`, `stall`: as above. `bursts`: how often the thread waits for loads.
- `KB`: kilobytes in flight per multiprocessor / those that the memory of an H100 needs.
- `issue`, `latency`: limits in TB/s.
- H100, H200: predicted share of a copy's bandwidth, and the limit that decides.
"""

import argparse
import json
from pathlib import Path

from benchmarks.machine_code.hot import ARCH, predictions, text_table
from benchmarks.machine_code.rows import measure, table
from benchmarks.machine_code.tools import default_archs, find_nvcc, options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch", nargs="+", help="compile for these (80 90 ..., or default) instead of reading the compiled library"
    )
    parser.add_argument("--json", help="write the rows to this file, one JSON object per line")
    parser.add_argument("--predict", action="store_true", help="only predict, from the rows in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.predict:
        print(text_table(predictions()))
        return
    archs = None
    if arguments.arch == ["default"]:
        nvcc = find_nvcc()
        archs = default_archs(nvcc) if nvcc else []
    elif arguments.arch:
        if not all(word.isdecimal() for word in arguments.arch):
            parser.error(f"--arch: expected numbers such as 80 90, or default, got {' '.join(arguments.arch)}")
        archs = [int(word) for word in arguments.arch]
    rows = measure(archs)
    if not rows:
        raise SystemExit("the compiled library has no CUDA kernels: build it where nvcc is, or give --arch")
    if arguments.json:
        Path(arguments.json).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"nvcc {rows[0]['nvcc']} {' '.join(options())}")
    print(table(rows))
    if any(row["arch"] == ARCH for row in rows):
        print(f"\nPredicted, not measured:\n{text_table(predictions(rows))}")


if __name__ == "__main__":
    main()
