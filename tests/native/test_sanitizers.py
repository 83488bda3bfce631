"""Runs the kernels and their shim under AddressSanitizer and UndefinedBehaviorSanitizer, in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

import host
import pytest

HERE = Path(__file__).parent
# One test of each kind: all instances, misaligned operands, barriers and shuffles, the longest T.
CASES = "test_every_kernel or (test_misaligned_views and plif) or test_any_order or test_operations or test_a_faultless"


def runtime() -> str | None:
    """Returns the library of AddressSanitizer, which must be loaded before Python."""
    compiler = os.environ.get("CXX", "c++")
    try:
        done = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True)
    except OSError:
        return None
    path = done.stdout.strip()
    return path if os.path.isabs(path) else None


def python(*arguments):
    env = os.environ | {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "SEWSNN_HOST_MODULE": str(host.build(sanitize=True)),
    }
    env.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run([sys.executable, *arguments], cwd=HERE, env=env, capture_output=True, text=True)


needs_runtime = pytest.mark.skipif(runtime() is None, reason="the compiler has no libasan.so")


@needs_runtime
def test_kernels_are_clean():
    # -s: the sanitizers write directly to stderr, and captured output would be lost with the process.
    done = python("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", ".", "-k", f"({CASES}) and not cuda")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-8000:]


@needs_runtime
def test_the_sanitizer_sees_past_the_vocabulary():
    done = python("-c", "import test_shim; test_shim.sample('unseen_read')")
    assert "AddressSanitizer: use-after-poison" in done.stderr, done.stderr[-4000:]
    assert "unseen_read" in done.stderr
