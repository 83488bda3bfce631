"""Reports the machine code of the CUDA kernels: registers, stack, and every memory access. Needs no GPU.

    python -m benchmarks.machine_code                            reads the kernels of the compiled library
    python -m benchmarks.machine_code --arch 80 90 121           compiles csrc/inst/*.cu for these architectures
    python -m benchmarks.machine_code --arch default --json FILE does so for sm_80, sm_90 and the newest that nvcc knows

The compiler options are those of cmake/cuda.cmake. `cuobjdump` reports registers, stack and shared memory; `nvdisasm`
lists the instructions. Both programs come with the CUDA toolkit, or from PyPI. The program keeps compiled files in
build/machine_code.

Columns:

- `blocks`: number of blocks of 128 threads that fit on a multiprocessor with these registers.
- `stack`: bytes per thread.
- `local`: number of LDL and STL instructions, which access local memory (spilled registers).
- `generic`: number of LD and ST instructions, which do not name the kind of memory that they access.
- loads and stores: those of global memory, as count x bits.
- `ahead`: the largest number of loads that are in flight before the kernel waits for one of them.
- `fma`, `dfma`: fused multiply-adds. --fmad=false forbids them except inside the division, the square root and the
  exponential.
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
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks import dating
from benchmarks.common import ROOT

BUILD = ROOT / "build" / "machine_code"
RESULTS = ROOT / "benchmarks" / "results" / "machine_code.jsonl"
COMMAND = "python -m benchmarks.machine_code --arch default --json benchmarks/results/machine_code.jsonl"
# The template parameters of each kernel.
PARAMETERS = {
    "forward_kernel": ("Neuron", "Storage", "N"),
    "backward_kernel": ("Neuron", "Storage", "K", "N", "Leak"),
    "sum_partials_kernel": ("Storage",),
    "bn_statistics_kernel": ("Storage", "N"),
    "bn_moments_kernel": ("Storage",),
    "bn_update_kernel": ("Storage",),
    "bn_forward_kernel": ("Storage", "N", "Shortcut"),
    "bn_bits_kernel": ("Storage",),
    "bn_unpack_kernel": ("Storage",),
    "bn_reduce_kernel": ("Storage", "K", "N", "Shortcut"),
    "bn_sums_kernel": ("Storage",),
    "bn_apply_kernel": ("Storage", "K", "N", "Shortcut"),
    "pool_forward_kernel": ("Storage", "K", "N"),
    "pool_reduce_kernel": ("Storage", "K", "N"),
    "pool_apply_kernel": ("Storage", "K", "N"),
    "pool_sums_kernel": ("Storage",),
}
FLAGS = ("Leak", "Shortcut")
#: family of kernels -> the files of csrc with its instances
FAMILIES = {
    "neuron": ["inst/multistep_cuda.cu", "inst/backward_*.cu"],
    "bn": ["inst/bn_*.cu"],
    "pool": ["inst/pool_*.cu"],
}
THREADS, REGISTERS_PER_SM = 128, 1 << 16  # kThreads of multistep.cuh
RESERVED_SHARED = 1024  # bytes that the system reserves in each kernel with shared memory, since sm_90
COUNTED = ("LDL", "STL", "LDS", "STS", "BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL")


def find_nvcc() -> Path | None:
    """Returns the path of nvcc, found as in setup.py; None if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def find_tool(name: str) -> Path:
    """Returns the path of ``nvdisasm`` or ``cuobjdump``: that of the CUDA toolkit, else the one that pip installed.

    Raises:
        SystemExit: the program was not found.
    """
    nvcc = find_nvcc()
    candidates = [nvcc.with_name(name)] if nvcc else []
    found = shutil.which(name)
    candidates += [Path(found)] if found else []
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
        candidates += [Path(file.locate()) for file in files if file.name == name]
    except importlib.metadata.PackageNotFoundError:
        pass
    found = next((c for c in candidates if c.is_file()), None)
    if found is None:
        raise SystemExit(f"{name} was not found beside nvcc nor on PATH: pip install nvidia-cuda-{name}")
    if not os.access(found, os.X_OK):
        found.chmod(0o755)  # pip does not keep the mode of every wheel
    return found


def run(*command, text: str | None = None) -> subprocess.CompletedProcess:
    """Runs a command and returns its output. If it fails, the program ends with the command's messages."""
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
    """Returns the architectures that nvcc knows as numbers (80 for sm_80), without variants such as sm_90a."""
    return sorted(int(a) for a in re.findall(r"^sm_(\d+)$", run(nvcc, "--list-gpu-code").stdout, re.MULTILINE))


def default_archs(nvcc: Path) -> list[int]:
    return sorted({80, 90, known_archs(nvcc)[-1]})


def options() -> list[str]:
    """Returns the options of CMake's Release build that affect device code. To change them, edit cmake/cuda.cmake."""
    text = (ROOT / "cmake" / "cuda.cmake").read_text(encoding="utf-8")
    standard = re.search(r"set\(CMAKE_CUDA_STANDARD (\d+)\)", text)
    extra = re.search(r"set\(cuda_options ([^)]*)\)", text)
    if not standard or not extra:
        raise SystemExit("cmake/cuda.cmake no longer sets CMAKE_CUDA_STANDARD and cuda_options as this file expects")
    return ["-O3", "-DNDEBUG", f"-std=c++{standard.group(1)}", *extra.group(1).split()]


def digest(*parts: str | bytes) -> str:
    """Returns a hash of these parts, as a name for files that are made from them."""
    state = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()[:16]


@contextmanager
def locked(folder: Path):
    """Lets only one process at a time compile into the folder. Processes that waited find the compiled files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiled(nvcc: Path, source: Path, arch: int, key: str) -> Path:
    """Returns the cubin of a source, and compiles it first if it does not exist yet."""
    start = f"{source.stem}.sm_{arch}."
    cubin = BUILD / f"{start}{key}.cubin"
    if not cubin.exists():
        for old in BUILD.glob(f"{start}*"):
            old.unlink()
        temporary = cubin.with_suffix(".unfinished")
        run(nvcc, "-cubin", *options(), f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-o", temporary, source)
        temporary.replace(cubin)
    return cubin


def resources(usage: str, arch: int) -> dict[str, dict]:
    """Reads the output of `cuobjdump -res-usage`: mangled name -> resources, without the shared memory that the system
    reserves."""
    found = {}
    for name, line in re.findall(r"^ Function (\S+):\n(.*)$", usage, re.MULTILINE):
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        if len(used) != 3:
            raise SystemExit(f"cannot read what cuobjdump says about {name}:\n{line}")
        blocks = REGISTERS_PER_SM // (-(-used["REG"] // 8) * 8 * THREADS)
        if arch >= 90 and used["SHARED"] >= RESERVED_SHARED:
            used["SHARED"] -= RESERVED_SHARED
        found[name] = {"registers": used["REG"], "blocks": blocks, "stack": used["STACK"], "shared": used["SHARED"]}
    return found


def bits(opcode: str) -> int:
    """Returns the number of bits that one LDG, STG, LD or ST moves."""
    match = re.search(r"\.[US]?(8|16|64|128|256)(?:\.|$)", opcode)
    return int(match.group(1)) if match else 32


def loads_ahead(body: str) -> int:
    """Returns the largest number of loads from global memory that are in flight when the kernel waits for one of them.

    The function reads the instructions from top to bottom. The control bits of an instruction are the upper ones of its
    128 bits: bits 110 to 112 name the scoreboard that it will clear, and bits 116 to 121 are a mask of the scoreboards
    that it waits for.
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
    """Reads the output of `nvdisasm`: mangled name -> counts of instructions."""
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
    """Returns the kernel and the template arguments of each mangled name."""
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
        row |= {name: row[name] == "true" for name in FLAGS if name in row}
        rows.append({"kernel": kernel} | row)
    return rows


def title(row: dict) -> str:
    """Returns a readable name such as ``backward_kernel<LeakyMultiply, bfloat16, K=16, N=4, Leak>``."""
    parts = [row[name] for name in ("Neuron", "Storage") if name in row]
    parts += [f"{name}={row[name]}" for name in ("K", "N") if name in row]
    parts += [name for name in FLAGS if row.get(name)]
    return f"{row['kernel']}<{', '.join(parts)}>"


def cubin_rows(cubin: Path) -> list[dict]:
    """Returns a row for each kernel of a cubin."""
    arch = int(re.search(r"\.sm_(\d+)", cubin.name).group(1))
    data = cubin.read_bytes()
    version = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", data)
    usage = resources(run(find_tool("cuobjdump"), "-res-usage", cubin).stdout, arch)
    code = instructions(run(find_tool("nvdisasm"), "--print-code", "-hex", cubin).stdout)
    if usage.keys() != code.keys():
        raise SystemExit(f"{cubin}: cuobjdump and nvdisasm name different kernels")
    names = sorted(code)
    about = {"arch": arch}, {"nvcc": version.group(1).decode() if version else "unknown"}
    return [about[0] | a | usage[n] | code[n] | about[1] for a, n in zip(described(names), names, strict=True)]


def library_cubins(library: Path, folder: Path) -> list[Path]:
    """Extracts the machine code of a compiled library. Returns one file per source and architecture, or none if the
    library has only CPU kernels."""
    done = subprocess.run(
        [find_tool("cuobjdump"), "-xelf", "all", library.resolve()], cwd=folder, capture_output=True, text=True
    )
    found = sorted(folder.glob("*.cubin"))
    if done.returncode and found:
        raise SystemExit(f"cuobjdump cannot read {library}:\n{done.stdout}{done.stderr}")
    return found


def compiled_cubins(archs: list[int]) -> list[Path]:
    """Returns the machine code of csrc/inst/*.cu for these architectures."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc was not found: put it on PATH or set CUDA_HOME")
    known = known_archs(nvcc)
    for arch in archs:
        if arch not in known:
            raise SystemExit(f"--arch: {nvcc} compiles for {', '.join(map(str, known))}, not for {arch}")
    version, csrc = nvcc_version(nvcc), ROOT / "csrc"
    jobs = []
    for source in sorted((csrc / "inst").glob("*.cu")):
        key = digest(version, *options(), dating.files_hash([f"inst/{source.name}"]))
        jobs += [(nvcc, source, arch, key) for arch in archs]
    with locked(BUILD), ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        return list(pool.map(lambda job: compiled(*job), jobs))


def read_cubins(cubins: list[Path]) -> list[dict]:
    """Returns a row for each kernel, with the hash of its code, sorted by architecture and title."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        rows = [row for rows in pool.map(cubin_rows, cubins) for row in rows]
    rows = [row | {"sources": sources_of(row)} for row in rows]
    return sorted(rows, key=lambda row: (row["arch"], title(row)))


def sources_of(row: dict) -> str:
    """Returns the hash of the code of this row's kernel: the files in inst with the instances of its family."""
    family = next((name for name in ("bn", "pool") if row["kernel"].startswith(f"{name}_")), "neuron")
    return dating.files_hash(FAMILIES[family])


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
        "stores",
        "shared",
    ]
    head += ["bar", "shfl", "mufu", "fma", "dfma", "call", "instr", "KB"]
    lines = [head]
    for r in rows:
        line = [r["arch"], title(r), r["registers"], r["blocks"], r["stack"]]
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
    parser.add_argument(
        "--arch", nargs="+", help="compile for these (80 90 ..., or default) instead of reading the compiled library"
    )
    parser.add_argument("--json", help="write the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
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
    print(f"nvcc {rows[0]['nvcc']} {' '.join(options())}")
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
