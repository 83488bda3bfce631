"""Compiles the CUDA kernels for the host. Does not import torch: tests/device has to load a library before it."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from filelock import FileLock

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
BUILD = HERE.parent.parent / "build" / "native"

_failed: dict[tuple, str] = {}


def _build(csrc: Path, sanitize: bool = False, target: str = "all") -> Path:
    """Builds a target with CMake and Ninja if needed and returns the folder. A failed build is not repeated."""
    key = csrc, sanitize, target
    if key in _failed:
        raise RuntimeError(_failed[key])
    folder = BUILD / ("sanitized" if sanitize else "plain")
    if csrc != CSRC:
        folder = folder.with_name(f"{folder.name}{str(csrc).replace(os.sep, '+')}")
    # The tools of this environment are here, even if it is not activated.
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    configure = ["cmake", "-GNinja", "-S", str(HERE), "-B", str(folder), "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DSANITIZE={'ON' if sanitize else 'OFF'}", f"-Dcsrc={csrc}"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # one process at a time builds
        for command in (configure, ["cmake", "--build", str(folder), "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            if done.returncode:
                _failed[key] = f"{' '.join(command)} failed:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
                raise RuntimeError(_failed[key])
    return folder


def build(sanitize: bool = False) -> Path:
    """Returns the Python module. SEWSNN_HOST_CSRC names another folder of sources than csrc of this repository."""
    folder = _build(Path(os.environ.get("SEWSNN_HOST_CSRC") or CSRC), sanitize)
    (module,) = folder.glob("sewsnn_host.*.so")
    return module


def archive(csrc: Path = CSRC) -> Path:
    """Returns a static library of the kernels, without the functions that execute them."""
    return _build(csrc, target="cuda_on_host") / "libcuda_on_host.a"
