"""What nvcc makes of the CUDA kernels: registers, stack, and every access to memory in the machine code. Needs no GPU.

    python -m benchmarks.machine_code                            the kernels of the compiled library
    python -m benchmarks.machine_code --arch 80 90 121           compiles csrc/inst/*.cu for these architectures
    python -m benchmarks.machine_code --arch default --json FILE the same for sm_80, sm_90 and the newest nvcc knows

The compiler's options are those of cmake/cuda.cmake. `cuobjdump` tells registers, stack and shared memory, `nvdisasm`
the instructions; both come with the CUDA toolkit, or from PyPI. Compiled files are kept in build/machine_code.

Columns: `blocks` is how many blocks of 128 threads fit on a multiprocessor with these registers; `stack` is bytes a
thread; `local` counts LDL and STL (accesses to local memory: spilled registers), `generic` counts LD and ST (accesses
that do not say which memory they mean). Loads and stores are those of global memory, as count x bits; `ahead` is how
many loads at most are under way before the kernel waits for one of them. Fused multiply-adds (`fma`, `dfma`) are
forbidden by --fmad=false except inside the division, the square root and the exponential.
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
# Of each kernel, its template parameters.
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
#: the files of csrc that a family of kernels is compiled from
FAMILIES = {
    "neuron": ["inst/multistep_cuda.cu", "inst/backward_*.cu"],
    "bn": ["inst/bn_*.cu"],
    "pool": ["inst/pool_*.cu"],
}
THREADS, REGISTERS_PER_SM = 128, 1 << 16  # kThreads of multistep.cuh
RESERVED_SHARED = 1024  # bytes, in each kernel that has shared memory, from sm_90 on
COUNTED = ("LDL", "STL", "LDS", "STS", "BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL")


def find_nvcc() -> Path | None:
    """Where setup.py looks."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def find_tool(name: str) -> Path:
    """``nvdisasm`` or ``cuobjdump``: the toolkit's, else the one that pip installed.

    Raises:
        SystemExit: there is none.
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


def compiled(nvcc: Path, source: Path, arch: int, key: str) -> Path:
    """The cubin of a source, compiled unless it is there already."""
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
    """By mangled name, what `cuobjdump -res-usage` says, without the shared memory that the system reserves."""
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
        row |= {name: row[name] == "true" for name in FLAGS if name in row}
        rows.append({"kernel": kernel} | row)
    return rows


def title(row: dict) -> str:
    """backward_kernel<LeakyMultiply, bfloat16, K=16, N=4, Leak>"""
    parts = [row[name] for name in ("Neuron", "Storage") if name in row]
    parts += [f"{name}={row[name]}" for name in ("K", "N") if name in row]
    parts += [name for name in FLAGS if row.get(name)]
    return f"{row['kernel']}<{', '.join(parts)}>"


def cubin_rows(cubin: Path) -> list[dict]:
    """A row for each kernel of a cubin."""
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
    """The machine code in a compiled library, a file for each source and architecture; none if it is for the CPU."""
    done = subprocess.run(
        [find_tool("cuobjdump"), "-xelf", "all", library.resolve()], cwd=folder, capture_output=True, text=True
    )
    found = sorted(folder.glob("*.cubin"))
    if done.returncode and found:
        raise SystemExit(f"cuobjdump cannot read {library}:\n{done.stdout}{done.stderr}")
    return found


def compiled_cubins(archs: list[int]) -> list[Path]:
    """The machine code of csrc/inst/*.cu for these architectures."""
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
    """A row for each kernel, with the date of its code, sorted by architecture and title."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        rows = [row for rows in pool.map(cubin_rows, cubins) for row in rows]
    rows = [row | {"sources": sources_of(row)} for row in rows]
    return sorted(rows, key=lambda row: (row["arch"], title(row)))


def sources_of(row: dict) -> str:
    """The hash of what compiles this row's kernel: the files of inst that its family of kernels comes from."""
    family = next((name for name in ("bn", "pool") if row["kernel"].startswith(f"{name}_")), "neuron")
    return dating.files_hash(FAMILIES[family])


def measure(archs: list[int] | None = None, library: Path | None = None) -> list[dict]:
    """A row for every kernel of the library; with ``archs``, of the sources compiled for these architectures."""
    if archs is not None:
        return read_cubins(compiled_cubins(archs))
    if library is None:
        from sewsnn.ops.load import LIBRARY as library
    with tempfile.TemporaryDirectory() as folder:
        return read_cubins(library_cubins(library, Path(folder)))


def table(rows: list[dict]) -> str:
    """To be read by people."""

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
