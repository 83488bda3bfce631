"""Finds the files that a call of ``functional.lif_multistep`` passes on the CPU, from Python to the kernel.

    python scripts/passed_files.py CHECKOUT BUILD

It compiles the library of the checkout with --coverage in the folder BUILD (some minutes), and runs a program with
three, and one with four, equal calls. The fourth call passes the files of csrc that have executed more lines in the
second program (gcov), and the files of sewsnn whose functions Python's profiler reports. The arithmetic in csrc/core
and csrc/neurons is inside the kernel and does not count.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

_ARITHMETIC = ("csrc/core/", "csrc/neurons/")
_CALL = """
import json, sys, torch, sewsnn
from pathlib import Path
times, package, found = int(sys.argv[1]), Path(sewsnn.__file__).parent, set()
def note(frame, event, _):
    path = Path(frame.f_code.co_filename)
    if event == "call" and path.is_relative_to(package):
        found.add("sewsnn/" + path.relative_to(package).as_posix())
torch.set_num_threads(1)
x_seq = torch.ones(4, 100)
for i in range(times):
    if i == times - 1:
        sys.setprofile(note)
    sewsnn.functional.lif_multistep(x_seq, backend="native")
sys.setprofile(None)
print(json.dumps(sorted(found)))
"""


def passed_files(checkout: Path, build: Path) -> list[str]:
    """The files that one call passes, first those of sewsnn."""
    import torch

    folder = Path(torch.__file__).parent
    options = [f"-DSEWSNN_TORCH_INCLUDE={folder}/include;{folder}/include/torch/csrc/api/include"]
    options += [f"-DSEWSNN_TORCH_LIB={folder}/lib", "-DSEWSNN_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None"]
    subprocess.run(
        ["cmake", "-S", checkout, "-B", build, "-DCMAKE_CXX_FLAGS=--coverage", *options], check=True, stdout=sys.stderr
    )
    subprocess.run(["cmake", "--build", build], check=True, stdout=sys.stderr)
    counts = []
    for times in (3, 4):
        for old in build.rglob("*.gcda"):
            old.unlink()
        env = os.environ | {"PYTHONPATH": str(checkout), "SEWSNN_LIBRARY": str(build / "libsewsnn.so")}
        command = [sys.executable, "-c", _CALL, str(times)]
        done = subprocess.run(command, env=env, cwd=build, capture_output=True, text=True, check=True)
        counts.append(_executed(checkout, build))
    native = sorted(file for file, count in counts[1].items() if count > counts[0].get(file, 0))
    return json.loads(done.stdout) + [file for file in native if not file.startswith(_ARITHMETIC)]


def _executed(checkout: Path, build: Path) -> dict[str, int]:
    """How many lines each file of csrc has executed, with repetitions."""
    found, work = {}, build / "gcov"
    for data in build.rglob("*.gcda"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        subprocess.run(["gcov", "--json-format", data], cwd=work, capture_output=True, check=True)
        for report in work.glob("*.gcov.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                path = (checkout / file["file"]).resolve()
                if path.is_relative_to(checkout):
                    name = path.relative_to(checkout).as_posix()
                    found[name] = found.get(name, 0) + sum(line["count"] for line in file["lines"])
    return found


if __name__ == "__main__":
    print(*passed_files(*(Path(word).resolve() for word in sys.argv[1:3])), sep="\n")
