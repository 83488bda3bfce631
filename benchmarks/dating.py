"""Tells whether a result is still current, by a hash of the code that the measured op compiles.

A row of results has the entries ``op``, a name in :data:`OPS`, and ``sources``, the hash of this op's code at the time
of the measurement. If the hash of the present code differs, the tables mark the number as old. Comments do not change
a hash. The hash covers only the op's own code: a change of the stem does not make results of a neuron old.
"""

import runpy
from functools import cache

from benchmarks.common import ROOT

_hashes = runpy.run_path(str(ROOT / "cmake" / "csrc_hash.py"))
_NEURON = ["ops/neuron.cpp", "ops/arguments.cpp", "ops/operands.cpp", "ops/memory.cpp"]
_NEURON_CPU = [*_NEURON, "inst/recurrence_cpu.cpp", "inst/multistep_cpu.cpp"]
_NEURON_CUDA = [*_NEURON, "ops/neuron_cuda.cpp", "ops/cuda.cpp", "inst/multistep_cuda.cu", "inst/backward_*.cu"]
_BLOCK = ["ops/bn.cpp", "ops/spikes.cpp"]
_STEM = ["ops/stem.cpp"]
_OPS = ("checks", "neuron", "spec", "registry", "load")
_CALL = ["sewsnn/functional.py", "sewsnn/neuron/*.py", *(f"sewsnn/ops/{name}.py" for name in _OPS)]

#: measured op -> the files with its code, for a CPU and for CUDA
OPS = {
    "neuron": (_NEURON_CPU, _NEURON_CUDA),
    "call": ([*_NEURON_CPU, *_CALL], [*_NEURON_CUDA, *_CALL]),
    "block": (
        [*_NEURON_CPU, *_BLOCK, "ops/bn_cpu.cpp", "inst/bn_cpu.cpp"],
        [*_NEURON_CUDA, *_BLOCK, "ops/bn_cuda.cpp", "ops/counters.cpp", "ops/spikes_cuda.cpp", "inst/bn_*.cu"],
    ),
}
OPS["step"] = (
    [*OPS["block"][0], *_STEM, "inst/pool_cpu.cpp"],
    [*OPS["block"][1], *_STEM, "ops/stem_cuda.cpp", "inst/pool_*.cu"],
)


@cache
def _hash(files: tuple[str, ...]) -> str:
    return _hashes["sources_hash"](list(files))


def files_hash(files: list[str]) -> str:
    """Returns the hash of all code that these files compile; see ``sources_hash`` in cmake/csrc_hash.py."""
    return _hash(tuple(files))


def sources_hash(op: str, device: str = "cpu") -> str:
    """Returns the hash of the code of an op on a device, ``"cpu"`` or ``"cuda"``."""
    return files_hash(OPS[op][device != "cpu"])


def dated(op: str, device: str = "cpu") -> dict[str, str]:
    """Returns the entries of a row that identify the measured code."""
    return {"op": op, "sources": sources_hash(op, device)}


def is_current(row: dict) -> bool:
    """Returns whether the op's code is unchanged since this row was measured."""
    device = "cuda" if "driver" in row else "cpu"
    return row.get("op") in OPS and row.get("sources") == sources_hash(row["op"], device)
