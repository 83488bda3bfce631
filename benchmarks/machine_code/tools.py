"""Finds the programs of the CUDA toolkit and runs them."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

from benchmarks.common import ROOT

find_nvcc = runpy.run_path(str(ROOT / "cmake" / "find_nvcc.py"))["find_nvcc"]


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


def run(*command, text: str | None = None, env: dict | None = None) -> subprocess.CompletedProcess:
    """Runs a command and returns its output. If it fails, the program ends with the command's messages."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done


def disassembled(cubin: Path) -> str:
    """Returns the SASS of a file of machine code. nvdisasm alone says the same, but needs twice as much time."""
    path = os.pathsep.join([str(find_tool("nvdisasm").parent), os.environ.get("PATH", "")])  # cuobjdump calls it
    return run(find_tool("cuobjdump"), "-sass", cubin, env=os.environ | {"PATH": path}).stdout


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
