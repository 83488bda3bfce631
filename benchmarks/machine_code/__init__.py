"""Reports the machine code of the CUDA kernels, and predicts from it how fast they are. Needs no GPU."""

from benchmarks.machine_code.disassembly import bits
from benchmarks.machine_code.names import described, sources_of, title
from benchmarks.machine_code.rows import COMMAND, RESULTS, measure, table
from benchmarks.machine_code.tools import default_archs, find_nvcc, find_tool, known_archs, nvcc_version, options, run

__all__ = [
    "COMMAND",
    "RESULTS",
    "bits",
    "default_archs",
    "described",
    "find_nvcc",
    "find_tool",
    "known_archs",
    "measure",
    "nvcc_version",
    "options",
    "run",
    "sources_of",
    "table",
    "title",
]
