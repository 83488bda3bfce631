"""The PTX of the kernels: that which the compiled library contains, or else nvcc writes it, which takes a minute and a
half; build/ptx keeps it as long as the sources do not change."""

import functools
import hashlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from parse import Kernel, PtxError, kernels

from benchmarks import machine_code
from benchmarks.common import csrc_hash
from sewsnn.ops import load

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "ptx"
SAMPLES = ROOT / "tests" / "native" / "samples.cu"
ARCH = 90
find_nvcc = machine_code.find_nvcc


@functools.cache
def _version(nvcc: Path) -> str:
    return machine_code.nvcc_version(nvcc)


def _compile(source: Path, csrc: Path, arch: int) -> Path:
    """Returns the PTX of one file."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise PtxError("nvcc was not found: put it on PATH or set CUDA_HOME")
    options = [*machine_code.options(), f"-arch=compute_{arch}"]
    state = hashlib.sha256(" ".join([_version(nvcc), *options]).encode())
    for path in [source, *sorted(csrc.rglob("*.h")), *sorted(csrc.rglob("*.cuh"))]:
        state.update(path.read_bytes())
    out = BUILD / f"{source.stem}.compute_{arch}.{state.hexdigest()[:16]}.ptx"
    if not out.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        temporary = out.with_suffix(".unfinished")
        command = [nvcc, "-ptx", *options, f"-I{csrc}", "-o", temporary, source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PtxError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
        temporary.replace(out)
    return out


def compiled_sample() -> Path:
    """Returns the PTX of tests/native/samples.cu."""
    with FileLock(BUILD / "lock"):
        return _compile(SAMPLES, ROOT / "csrc", ARCH)


def library_ptx(folder: Path, library: Path = load.LIBRARY) -> list[Path]:
    """Extracts the PTX that nvcc put into the compiled library beside the machine code (``9.0+PTX`` in
    TORCH_CUDA_ARCH_LIST). Returns one file per source, or none if the library has no PTX for ``ARCH`` or was built from
    other sources than csrc of this repository."""
    if "cuda" not in load.NATIVE_DEVICES or load.library_hash() != csrc_hash():
        return []
    command = [machine_code.find_tool("cuobjdump"), "-xptx", "all", library.resolve()]
    subprocess.run(command, cwd=folder, capture_output=True)  # fails if there is no PTX
    return sorted(folder.glob(f"*.sm_{ARCH}.ptx"))


def compiled(csrc: Path = ROOT / "csrc", arch: int = ARCH, without: tuple[str, ...] = ()) -> list[Path]:
    """Returns the PTX files of all kernels of the library, and those of tests/native/samples.cu. ``without``: leaves
    out the files whose name has one of these words."""
    sources = [s for s in sorted((csrc / "inst").glob("*.cu")) if not set(without) & set(s.stem.split("_"))]
    sources.append(SAMPLES)
    with FileLock(BUILD / "lock"), ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        return list(pool.map(lambda source: _compile(source, csrc, arch), sources))


class Listing:
    """The kernels of PTX files by their mangled names. A file's text is read when one of its kernels is wanted."""

    def __init__(self, files: list[Path]):
        self._file = {name: f for f in files for name in re.findall(r"\.entry ([\w$]+)\(", f.read_text())}

    def names(self) -> set[str]:
        return set(self._file)

    @functools.cache  # noqa: B019 (lives as long as the process)
    def _read(self, file: Path) -> dict[str, Kernel]:
        return kernels(file.read_text())

    def kernel(self, name: str) -> Kernel:
        """Returns a kernel.

        Raises:
            PtxError: no file has it.
        """
        if name not in self._file:
            raise PtxError(f"no PTX file has the kernel {name}")
        return self._read(self._file[name])[name]
