"""Finds the CUDA compiler, for setup.py and for the benchmarks and tests that compile kernels."""

import os
import shutil
from pathlib import Path


def find_nvcc() -> Path | None:
    """Returns the nvcc of CUDA_HOME or CUDA_PATH, else that on PATH, else that of /usr/local/cuda; None if there is
    none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)
