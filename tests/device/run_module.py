"""Runs a module on the pretended CUDA device, as ``python -m`` does:

python tests/device/run_module.py benchmarks.gpu.tiny --device cuda
"""

import os
import runpy
import sys
from pathlib import Path

import device_build
import pretend

device = pretend.install(Path(os.environ.get("SEWSNN_DEVICE") or device_build.build()))
sys.path.insert(0, os.getcwd())
del sys.argv[0]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    problems = device.problems()
    print(f"{device.launches()} kernels ran on the pretended CUDA device")
if problems:
    raise SystemExit(problems)
