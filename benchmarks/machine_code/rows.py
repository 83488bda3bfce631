"""Makes a row for each kernel, and the table of all rows."""

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.machine_code.cubins import compiled_cubins, library_cubins
from benchmarks.machine_code.disassembly import instructions, resources
from benchmarks.machine_code.names import described, sources_of, title
from benchmarks.machine_code.tools import disassembled, find_tool, run

RESULTS = ROOT / "benchmarks" / "results" / "machine_code.jsonl"
COMMAND = "python -m benchmarks.machine_code --arch default --json benchmarks/results/machine_code.jsonl"


def cubin_rows(cubin: Path) -> list[dict]:
    """Returns a row for each kernel of a cubin."""
    arch = int(re.search(r"\.sm_(\d+)", cubin.name).group(1))
    data = cubin.read_bytes()
    version = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", data)
    usage = resources(run(find_tool("cuobjdump"), "-res-usage", cubin).stdout, arch)
    code = instructions(disassembled(cubin))
    if usage.keys() != code.keys():
        raise SystemExit(f"{cubin}: cuobjdump names different kernels in its two lists")
    names = sorted(code)
    about = {"arch": arch}, {"nvcc": version.group(1).decode() if version else "unknown"}
    return [about[0] | a | usage[n] | code[n] | about[1] for a, n in zip(described(names), names, strict=True)]


def read_cubins(cubins: list[Path]) -> list[dict]:
    """Returns a row for each kernel, with the hash of its code, sorted by architecture and title."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        rows = [row for rows in pool.map(cubin_rows, cubins) for row in rows]
    rows = [row | {"sources": sources_of(row)} for row in rows]
    return sorted(rows, key=lambda row: (row["arch"], title(row)))


def measure(archs: list[int] | None = None, library: Path | None = None) -> list[dict]:
    """Returns a row for each kernel of the library; with ``archs``, of the sources compiled for these architectures."""
    if archs is not None:
        return read_cubins(compiled_cubins(archs))
    if library is None:
        from sewsnn.ops.load import LIBRARY as library
    with tempfile.TemporaryDirectory() as folder:
        return read_cubins(library_cubins(library, Path(folder)))


def table(rows: list[dict]) -> str:
    """Formats the rows as a table."""

    def accesses(counts: dict) -> str:
        return " ".join(f"{n}x{b}" for b, n in counts.items()) or "-"

    head = [
        "arch",
        "kernel",
        "regs",
        "blocks",
        "stack",
        "local",
        "generic",
        "loads",
        "ahead",
        "stall",
        "stores",
        "shared",
    ]
    head += ["bar", "shfl", "mufu", "fma", "dfma", "call", "instr", "KB"]
    lines = [head]
    for r in rows:
        line = [r["arch"], title(r), r["registers"], r["blocks"], r["stack"]]
        line += [r["LDL"] + r["STL"], sum(r["LD"].values()) + sum(r["ST"].values())]
        line += [
            accesses(r["LDG"]),
            r["ahead"],
            f"{r['stall']:.2f}" if "stall" in r else "-",
            accesses(r["STG"]),
            r["shared"],
        ]
        line += [r[name] for name in ("BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL", "instructions")]
        lines.append([*line, f"{r['code_bytes'] / 1024:.1f}"])
    lines = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {head.index(name) for name in ("kernel", "loads", "stores")}
    return "\n".join(
        " ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
