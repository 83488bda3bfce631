"""Which code a result was measured with: a hash of what the measured op compiles, not of all the sources.

A row of results carries ``op``, a name of :data:`OPS`, and ``sources``, the hash of that op's code when it was
measured. The tables call a number old where the two no longer agree. A changed comment changes no hash, and a changed
stem does not date a neuron.
"""

import runpy
from functools import cache

from benchmarks.common import ROOT

_hashes = runpy.run_path(str(ROOT / "cmake" / "csrc_hash.py"))
_NEURON = ["ops/neuron.cpp", "ops/operands.cpp", "ops/memory.cpp"]
_NEURON_CPU = [*_NEURON, "ops/neuron_cpu.cpp", "inst/multistep_cpu.cpp"]
_NEURON_CUDA = [*_NEURON, "ops/neuron_cuda.cpp", "ops/cuda.cpp", "inst/multistep_cuda.cu", "inst/backward_*.cu"]
_BLOCK = ["ops/bn.cpp", "ops/spikes.cpp"]
_STEM = ["ops/pool.cpp"]
_CALL = ["sewsnn/functional.py", "sewsnn/neuron.py", "sewsnn/checks.py", "sewsnn/ops/neuron.py", "sewsnn/ops/load.py"]

#: what is measured -> the files whose code it runs, for a CPU and for CUDA
OPS = {
    "neuron": (_NEURON_CPU, _NEURON_CUDA),
    "call": ([*_NEURON_CPU, *_CALL], [*_NEURON_CUDA, *_CALL]),
    "block": (
        [*_NEURON_CPU, *_BLOCK, "ops/bn_cpu.cpp", "inst/bn_cpu.cpp"],
        [*_NEURON_CUDA, *_BLOCK, "ops/bn_cuda.cpp", "ops/spikes_cuda.cpp", "inst/bn_*.cu"],
    ),
}
OPS["step"] = (
    [*OPS["block"][0], *_STEM, "ops/pool_cpu.cpp", "inst/pool_cpu.cpp"],
    [*OPS["block"][1], *_STEM, "ops/pool_cuda.cpp", "inst/pool_*.cu"],
)


@cache
def _hash(files: tuple[str, ...]) -> str:
    return _hashes["sources_hash"](list(files))


def files_hash(files: list[str]) -> str:
    """The hash of what these files compile: see ``sources_hash`` in cmake/csrc_hash.py."""
    return _hash(tuple(files))


def sources_hash(op: str, device: str = "cpu") -> str:
    """The hash of what the op compiles on a device, ``"cpu"`` or ``"cuda"``."""
    return files_hash(OPS[op][device != "cpu"])


def dated(op: str, device: str = "cpu") -> dict[str, str]:
    """What a row says about its code."""
    return {"op": op, "sources": sources_hash(op, device)}


def is_current(row: dict) -> bool:
    """The op's code has not changed since this row was measured."""
    device = "cuda" if "driver" in row else "cpu"
    return row.get("op") in OPS and row.get("sources") == sources_hash(row["op"], device)
