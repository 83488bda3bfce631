"""The executed instructions of the kernels: reads benchmarks/results/executed.jsonl, and converts PTX to SASS.

nvcc's PTX can be executed without a GPU (tests/ptx), the SASS of a GPU cannot. ptxas drops some instructions (moves,
parameters) and writes out others (divisions, roots). We therefore convert in two parts:

- The instructions that are written out count as the number of SASS instructions in :data:`WRITTEN_OUT`.
- All others are multiplied by one factor per kernel: its SASS instructions without those that are written out, divided
  by its PTX instructions without them. Both are numbers of instructions in the code, executed or not.
"""

from benchmarks.common import RESULTS, read_rows

EXECUTED = RESULTS / "executed.jsonl"
COMMAND = "python -m benchmarks.machine_code.executed"
#: PTX instruction -> SASS instructions that ptxas writes for it in line, and once per kernel for its slow path
#: (counted in sm_90 code of kernels with one to four of them, nvcc 13.0; integer divisions: estimate)
WRITTEN_OUT = {
    "div.approx.f32": (5, 0),
    "div.rn.f32": (12.5, 105),
    "div.rn.f64": (25.5, 95),
    "sqrt.rn.f32": (14.5, 24),
    "rcp.rn.f32": (11, 40),
    "div.u32": (18, 0),
    "div.s32": (18, 0),
    "rem.u32": (18, 0),
    "rem.s32": (18, 0),
}


def written_out(opcodes: dict[str, float]) -> dict[str, float]:
    """Returns the counts of the instructions that ptxas writes out."""
    return {op: n for op, n in opcodes.items() if op in WRITTEN_OUT}


def factor(sass: int, ptx: int, out: dict[str, float]) -> float:
    """Returns the number of SASS instructions per ordinary PTX instruction, from the sizes of a kernel's code."""
    in_line = sum(n * WRITTEN_OUT[op][0] + WRITTEN_OUT[op][1] for op, n in out.items())
    return (sass - in_line) / (ptx - sum(out.values()))


def executed_sass(row: dict, code: dict) -> tuple[float, float]:
    """Returns the SASS instructions that a thread executes, and those of its start and end.

    Args:
        row: the kernel's row of executed.jsonl.
        code: the kernel's row of machine_code.jsonl.
    """
    ordinary = factor(code["instructions"], row["static"], row["static_written_out"])
    out = row["written_out"]
    sass = ordinary * (row["instructions"] - sum(out.values())) + sum(n * WRITTEN_OUT[op][0] for op, n in out.items())
    return sass, ordinary * row["start"]


def read_counts() -> dict[tuple[str, int], dict]:
    """Returns the rows of executed.jsonl: (title of the kernel, T) -> row."""
    return {(row["kernel"], row["T"]): row for row in read_rows(EXECUTED)}


def count_of(counts: dict[tuple[str, int], dict], kernel: str, T: int) -> dict:
    """Returns the row of a kernel.

    Raises:
        SystemExit: nobody has counted it.
    """
    if (kernel, T) not in counts:
        raise SystemExit(f"{EXECUTED.name} has no executed instructions of {kernel} with T = {T}: {COMMAND}")
    return counts[kernel, T]
