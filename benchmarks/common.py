"""Code that all benchmarks use: it reads and writes rows of results, and describes the machine in every row."""

import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: a hash of the code of csrc: twelve hexadecimal digits; comments and white space do not change it
csrc_hash = runpy.run_path(str(ROOT / "cmake" / "csrc_hash.py"))["csrc_hash"]


def read_rows(path: Path | str) -> list[dict]:
    """Returns the rows of a JSON-lines file; none if the file does not exist. An incomplete last line is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    *lines, cut_off = path.read_text(encoding="utf-8").split("\n")
    del cut_off  # empty, if the last line was written whole
    return [json.loads(line) for line in lines]


def append_rows(path: Path | str, rows: list[dict]) -> None:
    """Appends the rows to a JSON-lines file and flushes it to the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        _end_line(file)
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _end_line(file) -> None:
    """Removes an incomplete last line, which an interrupted write left."""
    file.seek(0)
    whole = file.read().rfind("\n") + 1
    file.seek(0)
    size = len(file.read()[:whole].encode())
    file.truncate(size)


def quantiles(values: list[float]) -> dict[str, float]:
    """Returns the 20th, 50th and 80th percentile as ``p20``, ``p50`` and ``p80``."""
    p20, p50, p80 = (statistics.quantiles(values, n=10, method="inclusive")[i] for i in (1, 4, 7))
    return {"p20": p20, "p50": p50, "p80": p80}


def environment(device: str = "cpu", op: str = "step") -> dict:
    """Returns the entries of every row: machine, versions, date, commit, and the hash of the measured code.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        op: the measured op, one of :data:`benchmarks.dating.OPS`. The row gets the hash of its code.

    Raises:
        SystemExit: the library cannot be loaded, or it was built from other sources than those of this checkout.
    """
    import torch

    from benchmarks.dating import dated
    from sewsnn.ops.load import NATIVE_ERROR, library_hash

    if NATIVE_ERROR:
        raise SystemExit(f"nothing to measure: {NATIVE_ERROR}")
    if library_hash() != csrc_hash():
        raise SystemExit(f"the library was built from sources {library_hash()}, these are {csrc_hash()}: build it anew")
    found = {"device": device_name(device)}
    if device == "cpu":
        found |= {
            "threads": torch.get_num_threads(),
            "isa": os.environ.get("SEWSNN_CPU", torch.backends.cpu.get_cpu_capability()),
        }
    else:
        found |= {"driver": _driver(), "cuda": torch.version.cuda}
    found |= {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "csrc": library_hash(),
        **dated(op, device),
    }
    if "spikingjelly" in sys.modules:
        from importlib.metadata import version

        found["spikingjelly"] = version("spikingjelly")
    return found


def _commit() -> str:
    """Returns the commit of the checkout. Without git, the environment variable SEWSNN_COMMIT names it."""
    try:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return os.environ.get("SEWSNN_COMMIT", "unknown")
    return git.stdout.strip() or os.environ.get("SEWSNN_COMMIT", "unknown")


def device_name(device: str) -> str:
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
