"""Builds the compiled library with CMake and Ninja. pyproject.toml has all other settings of the package.

Environment variables:
    SEWSNN_CUDA=auto|0|1     compile the CUDA kernels: if nvcc is found (auto), never (0), always (1). You need no GPU
                             and no CUDA build of torch.
    TORCH_CUDA_ARCH_LIST     GPU architectures, e.g. "9.0" or "8.0;9.0+PTX". Unset: those of the GPUs in this machine;
                             without a GPU all common ones.
    MAX_JOBS                 number of parallel compilations
    SEWSNN_WERROR=1          treat compiler warnings as errors
    CUDA_HOME, CXX           folder of the CUDA toolkit; the C++ compiler
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LIBRARY = "libsewsnn.so"
find_nvcc = runpy.run_path(str(ROOT / "cmake" / "find_nvcc.py"))["find_nvcc"]
# Default architectures for each major version of nvcc. PTX of the newest one serves future GPUs.
DEFAULT_ARCHS = {12: "7.5;8.0;8.6;9.0+PTX", 13: "7.5;8.0;8.6;9.0;10.0;12.0+PTX"}


def say(message):
    # pip shows this only with -v.
    print(f"sewsnn: {message}", file=sys.stderr, flush=True)


def choice(name, *allowed):
    """Returns the value of an environment variable; the first allowed value if the variable is unset or empty."""
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise SystemExit(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}")
    return value


def parallel_jobs():
    """Returns MAX_JOBS as arguments of cmake. Unset or empty: no argument, so that cmake chooses the number."""
    jobs = os.environ.get("MAX_JOBS")
    if jobs and not re.fullmatch("[1-9][0-9]*", jobs):
        raise SystemExit(f"MAX_JOBS must be a number of parallel compilations, 1 or more, got {jobs!r}")
    return ["--parallel", jobs] if jobs else []


def cuda_choice():
    """Decides from SEWSNN_CUDA and the installed programs whether to compile the CUDA kernels. Returns (nvcc or None,
    reason)."""
    wanted = choice("SEWSNN_CUDA", "auto", "0", "1")
    if wanted == "0":
        return None, "SEWSNN_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None and wanted == "1":
        raise SystemExit("SEWSNN_CUDA=1, but nvcc was not found: put it on PATH or set CUDA_HOME")
    return nvcc, "nvcc was not found (put it on PATH or set CUDA_HOME)" if nvcc is None else f"with {nvcc}"


def nvcc_major(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.", text)
    if not match:
        raise SystemExit(f"{nvcc} --version does not name a release:\n{text}")
    return int(match.group(1))


def present_archs():
    """Returns the architectures of the GPUs in this machine, such as "9.0;12.0"; empty without a GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ""
    done = subprocess.run([smi, "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True)
    found = re.findall(r"^\s*(\d+\.\d)\s*$", done.stdout, re.MULTILINE) if done.returncode == 0 else []
    return ";".join(sorted(set(found), key=float))


def cmake_architectures(arch_list):
    """Converts TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX") to CMAKE_CUDA_ARCHITECTURES ("80-real;90a")."""
    out = []
    for arch in arch_list.replace(" ", ";").replace(",", ";").split(";"):
        if not arch:
            continue
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if not match:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: cannot read {arch!r}; expected numbers such as 8.0, 9.0a or 9.0+PTX"
            )
        out.append("".join(match.group(1, 2, 3)) + ("" if match.group(4) else "-real"))
    if not out:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST: there is no architecture in {arch_list!r}; expected numbers such as 9.0"
        )
    return ";".join(out)


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        try:
            import torch
        except ImportError:
            raise SystemExit(
                "torch is needed to build sewsnn (its headers): install torch first, or drop --no-build-isolation"
            ) from None
        torch_dir = Path(torch.__file__).parent
        nvcc, why = cuda_choice()
        args = [
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DSEWSNN_TORCH_INCLUDE={torch_dir / 'include'}",
            f"-DSEWSNN_TORCH_LIB={torch_dir / 'lib'}",
            f"-DSEWSNN_CSRC_HASH={runpy.run_path(str(ROOT / 'cmake' / 'csrc_hash.py'))['csrc_hash']()}",
            f"-DSEWSNN_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DSEWSNN_WERROR={'ON' if choice('SEWSNN_WERROR', '0', '1') == '1' else 'OFF'}",
        ]
        ninja = shutil.which("ninja")
        if ninja is None:
            raise SystemExit("ninja is needed to build sewsnn: pip install ninja")
        args.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        if nvcc:
            archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or present_archs()
            if not archs:
                major = nvcc_major(nvcc)
                archs = DEFAULT_ARCHS[min(max(major, min(DEFAULT_ARCHS)), max(DEFAULT_ARCHS))]
            args += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={cmake_architectures(archs)}"]
            say(f"compiling the CPU and CUDA kernels {why}, architectures {archs}")
        else:
            say(f"compiling the CPU kernels only: {why}")
        if launcher := shutil.which("ccache"):
            args.append(f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}")
            args += [f"-DCMAKE_CUDA_COMPILER_LAUNCHER={launcher}"] if nvcc else []
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        jobs = parallel_jobs()
        subprocess.run(["cmake", "-S", ROOT, "-B", build_dir, *args], check=True)
        subprocess.run(["cmake", "--build", build_dir, *jobs], check=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_dir / LIBRARY, target)

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)


class Wheel(bdist_wheel):
    """One wheel for every Python: the library does not use Python.h."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(
    ext_modules=[Extension("sewsnn._native.libsewsnn", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    distclass=BinaryDistribution,
)
