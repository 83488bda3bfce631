"""Everything a GPU machine is for, in one command: ``python -m benchmarks.gpu``."""
