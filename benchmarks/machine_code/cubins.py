"""Makes the files of machine code: compiles csrc/inst/*.cu, or takes them out of the compiled library."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from benchmarks import dating
from benchmarks.common import ROOT
from benchmarks.machine_code.tools import find_nvcc, find_tool, known_archs, nvcc_version, options, run

BUILD = ROOT / "build" / "machine_code"


def digest(*parts: str | bytes) -> str:
    """Returns a hash of these parts, as a name for files that are made from them."""
    state = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()[:16]


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
    BUILD.mkdir(parents=True, exist_ok=True)
    # One process at a time compiles. Those that waited find the compiled files.
    with FileLock(BUILD / "lock"), ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        return list(pool.map(lambda job: compiled(*job), jobs))
