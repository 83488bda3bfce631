"""All GPU tests and timings in one command: ``python -m benchmarks.gpu``."""
