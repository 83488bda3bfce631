"""Ensures that there is a library with CUDA kernels built from these sources; builds one only if there is none.

A library that was built on a machine without a GPU works, because it needs no particular torch or Python
(docs/install.md). It is found at sewsnn/_native/libsewsnn.so, or at the path in SEWSNN_LIBRARY.
"""

import argparse
import os
import subprocess
import sys

from benchmarks.common import ROOT, csrc_hash

CHECK = """
from sewsnn.ops.load import NATIVE_DEVICES, NATIVE_ERROR, library_hash
print(library_hash() or "none", " ".join(NATIVE_DEVICES) or "-", NATIVE_ERROR or "", sep="|")
"""


def why_not(device: str) -> str | None:
    """Returns why the present library cannot be used, or None if it can. Asked in a separate process."""
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    found, devices, error = done.stdout.strip().split("|", 2)
    if error:
        return error
    if device not in devices.split():
        return f"it has no kernels for {device}"
    if found != csrc_hash():
        return f"it was built from sources {found}, but the present sources are {csrc_hash()}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    reason = why_not(device)
    if reason is None:
        print(f"the library exists, built from sources {csrc_hash()}")
        return
    if os.environ.get("SEWSNN_LIBRARY"):
        raise SystemExit(f"the library in SEWSNN_LIBRARY cannot be used: {reason}")
    print(f"building the library, because of the present one: {reason}", flush=True)
    env = os.environ | {"SEWSNN_CUDA": "1" if device == "cuda" else "0"}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=env, check=True)
    if reason := why_not(device):
        raise SystemExit(f"the library that was just built cannot be used: {reason}")
    print(f"built from sources {csrc_hash()}")


if __name__ == "__main__":
    main()
