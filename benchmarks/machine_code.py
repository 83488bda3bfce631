"""What nvcc makes of the CUDA kernels: registers, spills, and every access to memory in the machine code. Needs no GPU.

    python -m benchmarks.machine_code [--arch 80 90 ...] [--json FILE]

Every csrc/inst/*.cu is compiled for each architecture with the options of cmake/cuda.cmake (by default sm_80, sm_90 and
the newest this nvcc knows). Registers, spills, stack and shared memory are what ptxas says; the counts of instructions
come from nvdisasm. What is compiled once is kept in build/machine_code.

Columns: `blocks` is how many blocks of 128 threads the registers leave room for on a multiprocessor; `spill` and
`stack` are bytes; `local` counts LDL and STL, `generic` LD and ST, which do not say which memory they mean. Loads and
stores are those of global memory, as count x bits; `ahead` is how many loads are under way at most before one of them
is waited for. Fused multiply-adds (`fma`, `dfma`) are forbidden by --fmad=false except inside the division, the square
root and the exponential.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ROOT, csrc_hash

BUILD = ROOT / "build" / "machine_code"
RESULTS = ROOT / "benchmarks" / "results" / "machine_code.jsonl"
COMMAND = "python -m benchmarks.machine_code --json benchmarks/results/machine_code.jsonl"
# Of each kernel, its template parameters.
PARAMETERS = {
    "forward_kernel": ("Neuron", "Storage", "N"),
    "backward_kernel": ("Neuron", "Storage", "K", "N", "Leak"),
    "sum_partials_kernel": ("Storage",),
    "pool_forward_kernel": ("Storage", "K", "N"),
    "pool_reduce_kernel": ("Storage", "K", "N"),
    "pool_apply_kernel": ("Storage", "K", "N"),
    "pool_sums_kernel": ("Storage",),
}
THREADS, REGISTERS_PER_SM = 128, 1 << 16  # kThreads of multistep.cuh
COUNTED = ("LDL", "STL", "LDS", "STS", "BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL")


def find_nvcc() -> Path | None:
    """Where setup.py looks."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def find_nvdisasm() -> Path:
    """The toolkit's, else the one that pip installed."""
    nvcc = find_nvcc()
    candidates = [nvcc.with_name("nvdisasm")] if nvcc else []
    found = shutil.which("nvdisasm")
    candidates += [Path(found)] if found else []
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        candidates += [Path(file.locate()) for file in files if file.name == "nvdisasm"]
    except importlib.metadata.PackageNotFoundError:
        pass
    found = next((c for c in candidates if c.is_file()), None)
    if found is None:
        raise SystemExit("nvdisasm was not found beside nvcc nor on PATH: pip install nvidia-cuda-nvdisasm")
    return found


def run(*command, text: str | None = None) -> subprocess.CompletedProcess:
    """Its output; a failure ends the program with what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done


def nvcc_version(nvcc: Path) -> str:
    text = run(nvcc, "--version").stdout
    match = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    if not match:
        raise SystemExit(f"{nvcc} --version does not name a version:\n{text}")
    return match.group(1)


def known_archs(nvcc: Path) -> list[int]:
    """80 for sm_80; without the likes of sm_90a."""
    return sorted(int(a) for a in re.findall(r"^sm_(\d+)$", run(nvcc, "--list-gpu-code").stdout, re.MULTILINE))


def default_archs(nvcc: Path) -> list[int]:
    return sorted({80, 90, known_archs(nvcc)[-1]})


def options() -> list[str]:
    """Those of CMake's Release build that concern the device; cmake/cuda.cmake is the place to change them."""
    text = (ROOT / "cmake" / "cuda.cmake").read_text(encoding="utf-8")
    standard = re.search(r"set\(CMAKE_CUDA_STANDARD (\d+)\)", text)
    extra = re.search(r"set\(cuda_options ([^)]*)\)", text)
    if not standard or not extra:
        raise SystemExit("cmake/cuda.cmake no longer sets CMAKE_CUDA_STANDARD and cuda_options as this file expects")
    return ["-O3", "-DNDEBUG", f"-std=c++{standard.group(1)}", *extra.group(1).split()]


def digest(*parts: str | bytes) -> str:
    """A name for what was made from these."""
    state = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()[:16]


@contextmanager
def locked(folder: Path):
    """One process at a time compiles into the folder; those that waited find the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiled(nvcc: Path, source: Path, arch: int, key: str) -> tuple[Path, str]:
    """The cubin, and what ptxas said about it."""
    start = f"{source.stem}.sm_{arch}."
    cubin = BUILD / f"{start}{key}.cubin"
    said = cubin.with_suffix(".txt")
    if not cubin.exists():
        for old in BUILD.glob(f"{start}*"):
            old.unlink()
        temporary = cubin.with_suffix(".unfinished")
        flags = [*options(), f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-Xptxas", "-v"]
        done = run(nvcc, "-cubin", *flags, "-o", temporary, source)
        said.write_text(done.stderr, encoding="utf-8")
        temporary.replace(cubin)
    return cubin, said.read_text(encoding="utf-8")


def resources(said: str) -> dict[str, dict]:
    """By mangled name, what `ptxas -v` says."""
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        name = part[: part.index("'")]
        frame = re.search(
            rf"Function properties for {re.escape(name)}\n"
            r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
            part,
        )
        used = re.search(r"Used (\d+) registers.*", part)
        if not frame or not used:
            raise SystemExit(f"cannot read what ptxas says about {name}:\n{part}")
        shared = re.search(r"(\d+) bytes smem", used.group())
        registers = int(used.group(1))
        found[name] = {
            "registers": registers,
            "blocks": REGISTERS_PER_SM // (-(-registers // 8) * 8 * THREADS),
            "spill_stores": int(frame.group(2)),
            "spill_loads": int(frame.group(3)),
            "stack": int(frame.group(1)),
            "shared": int(shared.group(1)) if shared else 0,
        }
    return found


def bits(opcode: str) -> int:
    """How much one LDG, STG, LD or ST moves."""
    match = re.search(r"\.[US]?(8|16|64|128|256)(?:\.|$)", opcode)
    return int(match.group(1)) if match else 32


def loads_ahead(body: str) -> int:
    """The most loads from global memory that are under way when one of them is waited for, read from top to bottom.

    An instruction's control bits, the upper ones of its 128, name the scoreboard it will clear (bits 110 to 112) and
    those it waits for (a mask, bits 116 to 121).
    """
    most, under_way = 0, [0] * 8
    encoded = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*).*\n\s*/\* 0x([0-9a-f]{16}) \*/"
    for opcode, upper in re.findall(encoded, body, re.MULTILINE):
        control = int(upper, 16) >> 46
        waits = [board for board in range(6) if control >> 6 >> board & 1]
        if any(under_way[board] for board in waits):
            most = max(most, sum(under_way))
            for board in waits:
                under_way[board] = 0
        if opcode == "LDG":
            under_way[control & 7] += 1
    return most


def instructions(disassembly: str) -> dict[str, dict]:
    """By mangled name, what `nvdisasm` shows."""
    found = {}
    for part in disassembly.split("\t.section\t.text.")[1:]:
        name, _, body = part.partition(",")
        opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", body, re.MULTILINE)
        if not opcodes:
            raise SystemExit(f"cannot read the disassembly of {name}")
        row = {kind: {} for kind in ("LDG", "STG", "LD", "ST")}
        for opcode, count in Counter(opcodes).items():
            if (kind := opcode.split(".")[0]) in row:
                row[kind][bits(opcode)] = row[kind].get(bits(opcode), 0) + count
        kinds = Counter(opcode.split(".")[0] for opcode in opcodes)
        kinds["FFMA"] += 2 * kinds["FFMA2"]
        found[name] = {kind: {str(b): n for b, n in sorted(row[kind].items(), reverse=True)} for kind in row}
        found[name] |= {kind: kinds[kind] for kind in COUNTED}
        found[name]["ahead"] = loads_ahead(body)
        found[name] |= {"instructions": len(opcodes) - kinds["NOP"], "code_bytes": 16 * len(opcodes)}
    return found


def described(names: list[str]) -> list[dict]:
    """Kernel and template arguments of mangled names."""
    filt = shutil.which("c++filt")
    if filt is None:
        raise SystemExit("c++filt was not found: install binutils")
    rows = []
    for line in run(filt, text="\n".join(names)).stdout.splitlines():
        match = re.search(r"(\w+)<(.*)>\(", line)
        kernel = match.group(1) if match else line
        values = re.sub(r"\w+::|(?<=\w)<\w+>", "", match.group(2)).split(", ") if match else []
        if len(values) != len(PARAMETERS.get(kernel, "")):
            raise SystemExit(f"benchmarks/machine_code.py does not know the template parameters of {line}")
        row = dict(zip(PARAMETERS[kernel], values, strict=True))
        row["Storage"] = row["Storage"].lower()
        row |= {name: int(row[name]) for name in ("K", "N") if name in row}
        if "Leak" in row:
            row["Leak"] = row["Leak"] == "true"
        rows.append({"kernel": kernel} | row)
    return rows


def title(row: dict) -> str:
    """backward_kernel<LeakyMultiply, bfloat16, K=16, N=4, Leak>"""
    parts = [row[name] for name in ("Neuron", "Storage") if name in row]
    parts += [f"{name}={row[name]}" for name in ("K", "N") if name in row]
    parts += ["Leak"] if row.get("Leak") else []
    return f"{row['kernel']}<{', '.join(parts)}>"


def _file_rows(nvcc: Path, nvdisasm: Path, source: Path, arch: int, key: str) -> list[dict]:
    """The kernels of one file, with this file's own reading of them kept as well."""
    cubin, said = compiled(nvcc, source, arch, key)
    kept = cubin.with_suffix(f".{digest(Path(__file__).read_bytes())}.json")
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    by_ptxas, by_code = resources(said), instructions(run(nvdisasm, "--print-code", "-hex", cubin).stdout)
    if by_ptxas.keys() != by_code.keys():
        raise SystemExit(f"{cubin}: ptxas and nvdisasm name different kernels")
    names = sorted(by_code)
    about = described(names)
    rows = [{"arch": arch} | a | by_ptxas[name] | by_code[name] for a, name in zip(about, names, strict=True)]
    for old in BUILD.glob(f"{cubin.stem}.*.json"):
        old.unlink()
    kept.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def measure(archs: list[int] | None = None) -> list[dict]:
    """A row for every kernel and architecture."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None:
        raise SystemExit("nvcc was not found: put it on PATH or set CUDA_HOME")
    known = known_archs(nvcc)
    for arch in archs or []:
        if arch not in known:
            raise SystemExit(f"--arch: {nvcc} compiles for {', '.join(map(str, known))}, not for {arch}")
    version, csrc = nvcc_version(nvcc), ROOT / "csrc"
    headers = [p.read_bytes() for p in sorted(csrc.rglob("*.*")) if p.suffix in (".h", ".cuh")]
    jobs = []
    for source in sorted((csrc / "inst").glob("*.cu")):
        key = digest(version, *options(), source.read_bytes(), *headers)
        jobs += [(nvcc, nvdisasm, source, arch, key) for arch in archs or default_archs(nvcc)]
    with locked(BUILD), ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        rows = [row for rows in pool.map(lambda job: _file_rows(*job), jobs) for row in rows]
    about = {"nvcc": version, "csrc": csrc_hash()}
    return sorted((row | about for row in rows), key=lambda row: (row["arch"], title(row)))


def table(rows: list[dict]) -> str:
    """To be read by people."""

    def accesses(counts: dict) -> str:
        return " ".join(f"{n}x{b}" for b, n in counts.items()) or "-"

    head = [
        "arch",
        "kernel",
        "regs",
        "blocks",
        "spill",
        "stack",
        "local",
        "generic",
        "loads",
        "ahead",
        "stores",
        "shared",
    ]
    head += ["bar", "shfl", "mufu", "fma", "dfma", "call", "instr", "KB"]
    lines = [head]
    for r in rows:
        line = [r["arch"], title(r), r["registers"], r["blocks"], r["spill_stores"] + r["spill_loads"], r["stack"]]
        line += [r["LDL"] + r["STL"], sum(r["LD"].values()) + sum(r["ST"].values())]
        line += [accesses(r["LDG"]), r["ahead"], accesses(r["STG"]), r["shared"]]
        line += [r[name] for name in ("BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL", "instructions")]
        lines.append([*line, f"{r['code_bytes'] / 1024:.1f}"])
    lines = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {head.index(name) for name in ("kernel", "loads", "stores")}
    return "\n".join(
        " ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", help="e.g. 80 90; default: 80, 90 and the newest nvcc knows")
    parser.add_argument("--json", help="write the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
    rows = measure(arguments.arch)
    print(f"nvcc {rows[0]['nvcc']} {' '.join(options())}, csrc {rows[0]['csrc']}")
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
