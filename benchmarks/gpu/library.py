"""Makes sure that there is a library with CUDA kernels built from these sources; builds one only if there is none.

A library built on a machine without a GPU serves: it needs no particular torch or Python (docs/install.md). Either in
its place, sewsnn/_native/libsewsnn.so, or named by SEWSNN_LIBRARY.
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
    """Why the library that is there does not serve; None if it does. Asked in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    found, devices, error = done.stdout.strip().split("|", 2)
    if error:
        return error
    if device not in devices.split():
        return f"it has no kernels for {device}"
    if found != csrc_hash():
        return f"it was built from sources {found}, these are {csrc_hash()}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    reason = why_not(device)
    if reason is None:
        print(f"the library is there, built from sources {csrc_hash()}")
        return
    if os.environ.get("SEWSNN_LIBRARY"):
        raise SystemExit(f"the library named by SEWSNN_LIBRARY does not serve: {reason}")
    print(f"building the library: {reason}", flush=True)
    env = os.environ | {"SEWSNN_CUDA": "1" if device == "cuda" else "0"}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=env, check=True)
    if reason := why_not(device):
        raise SystemExit(f"the library just built does not serve: {reason}")
    print(f"built from sources {csrc_hash()}")


if __name__ == "__main__":
    main()
