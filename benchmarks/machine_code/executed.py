"""Counts the instructions that the kernels execute, and writes benchmarks/results/executed.jsonl. Needs no GPU.

    python -m benchmarks.machine_code.executed [--counts FILE] [--ptx FILE ...]

It executes the PTX that nvcc writes (python -m tests.ptx.count), which takes some minutes, and compiles the PTX once
more to count its instructions. --counts takes the output of tests.ptx.count, and --ptx files of PTX, which must be of
the present sources.

Each row belongs to a kernel and T and has the hash of the kernel's sources.

- ``instructions``: PTX instructions that a thread executes; for the kernels of batch norm per row of its walk, for
  those of the stem per row of windows.
- ``start``: those before and after its rows. ``rows``: the number of rows that were run.
- ``written_out``: those that ptxas replaces by several instructions (counts.py).
- ``static``, ``static_written_out``: the same numbers of the code, executed or not.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.common import ROOT, read_rows
from benchmarks.machine_code.counts import EXECUTED, written_out
from benchmarks.machine_code.names import described, sources_of, title
from benchmarks.machine_code.tools import find_nvcc, nvcc_version, options, run


def bodies(text: str) -> dict[str, str]:
    """Returns the code of each kernel of a PTX file: mangled name -> text. Inline assembly has braces of its own."""
    found = {}
    for match in re.finditer(r"\.entry ([\w$]+)\(.*?^\{", text, re.MULTILINE | re.DOTALL):
        depth, end = 1, match.end()
        while depth:
            brace = re.compile(r"[{}]").search(text, end)
            depth += 1 if brace.group() == "{" else -1
            end = brace.end()
        found[match.group(1)] = text[match.end() : end - 1]
    return found


def opcodes(text: str) -> dict[str, Counter]:
    """Returns how often the code of each kernel of a PTX file has each instruction: mangled name -> opcode -> count."""
    instruction = re.compile(r"^\s*(?:\{\s*)?(?:@!?%?\w+\s+)?([a-z][\w.:]*)[^\w.:=]", re.MULTILINE)
    return {name: Counter(instruction.findall(body)) for name, body in bodies(text).items()}


def compiled(folder: Path) -> list[Path]:
    """Compiles csrc/inst/*.cu to PTX of compute_90."""
    nvcc, csrc = find_nvcc(), ROOT / "csrc"
    if nvcc is None:
        raise SystemExit("nvcc was not found: put it on PATH or set CUDA_HOME")
    files = []
    for source in sorted((csrc / "inst").glob("*.cu")):
        files.append(folder / f"{source.stem}.ptx")
        run(nvcc, "-ptx", *options(), f"-I{csrc}", "-arch=compute_90", "-o", files[-1], source)
    return files


def per_unit(rows: list[dict]) -> dict:
    """Returns instructions, start and opcodes of one kernel and T, from the rows of tests.ptx.count."""
    last = rows[-1]
    if last["kernel"].startswith("pool_"):  # a row of windows has two columns and two rows of z
        instructions = 4 * int(re.search(r"N=(\d+)", last["kernel"]).group(1)) * last["per_z"]
        units = last["per_thread"] / instructions
        each = {op: n / units for op, n in last["opcodes"].items()}
        return {"rows": units, "instructions": instructions, "start": 0, "opcodes": each}
    if last["rows"] is None:
        return {"rows": 1, "instructions": last["per_thread"], "start": 0, "opcodes": last["opcodes"]}
    before, more = rows[-2]["opcodes"], last["rows"] - rows[-2]["rows"]
    each = {op: (n - before.get(op, 0)) / more for op, n in last["opcodes"].items()}
    return {"rows": last["rows"], "instructions": last["per_row"], "start": last["prologue"], "opcodes": each}


def executed_rows(counts: list[dict], ptx: list[str], nvcc: str) -> list[dict]:
    """Returns the rows of executed.jsonl.

    Args:
        counts: the rows of tests.ptx.count.
        ptx: the texts of the PTX files.
        nvcc: the version of nvcc.
    """
    static = {name: ops for text in ptx for name, ops in opcodes(text).items()}
    names = sorted(name for name in static if "sewsnn" in name and "_kernel" in name)
    code = {title(row): (static[name], row) for name, row in zip(names, described(names), strict=True)}
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in counts:
        groups.setdefault((row["kernel"], row["T"]), []).append(row)
    made = []
    for (kernel, T), rows in groups.items():
        if kernel not in code:
            raise SystemExit(f"the PTX has no kernel {kernel}")
        ops, about = code[kernel]
        unit = per_unit(rows)
        row = {"kernel": kernel, "T": T, "rows": round(unit["rows"], 2)}
        row |= {name: round(unit[name], 1) for name in ("instructions", "start")}
        row["written_out"] = {op: round(n, 2) for op, n in written_out(unit["opcodes"]).items() if n}
        row |= {"static": sum(ops.values()), "static_written_out": written_out(ops)}
        made.append(row | {"nvcc": nvcc, "sources": sources_of(about)})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, help="output of python -m tests.ptx.count, instead of running it")
    parser.add_argument("--ptx", type=Path, nargs="+", help="files of PTX, instead of compiling them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, ptx = arguments.counts, arguments.ptx or compiled(Path(folder))
        if counts is None:
            counts = Path(folder) / "counts.jsonl"
            subprocess.run([sys.executable, "-m", "tests.ptx.count", "--out", counts], cwd=ROOT, check=True)
        texts = [file.read_text(encoding="utf-8") for file in ptx]
        rows = executed_rows(read_rows(counts), texts, nvcc_version(find_nvcc()))
    EXECUTED.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {EXECUTED}")


if __name__ == "__main__":
    main()
