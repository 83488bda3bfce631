"""What the benchmarks share: where results go, and what every row says about the machine it comes from."""

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

#: twelve hexadecimal digits that change with the code of csrc; comments and white space are no code
csrc_hash = runpy.run_path(str(ROOT / "cmake" / "csrc_hash.py"))["csrc_hash"]


def read_rows(path: Path | str) -> list[dict]:
    """The rows of a JSON-lines file; none if there is no file. A last line that was cut off is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    *lines, cut_off = path.read_text(encoding="utf-8").split("\n")
    del cut_off  # empty, if the last line was written whole
    return [json.loads(line) for line in lines]


def append_rows(path: Path | str, rows: list[dict]) -> None:
    """Adds the rows to a JSON-lines file, at once on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        _end_line(file)
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _end_line(file) -> None:
    """Cuts off what an interrupted write left of a line."""
    file.seek(0)
    whole = file.read().rfind("\n") + 1
    file.seek(0)
    size = len(file.read()[:whole].encode())
    file.truncate(size)


def quantiles(values: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    p20, p50, p80 = (statistics.quantiles(values, n=10, method="inclusive")[i] for i in (1, 4, 7))
    return {"p20": p20, "p50": p50, "p80": p80}


def environment(device: str = "cpu", op: str = "step") -> dict:
    """What every row carries: machine, versions, date, commit, and the code that was measured.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        op: what is measured, one of :data:`benchmarks.dating.OPS`; the row keeps the hash of that op's code.

    Raises:
        SystemExit: the library was built from other sources than those here.
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
    """Of the checkout; SEWSNN_COMMIT names it where there is no git."""
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
