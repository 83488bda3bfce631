"""Timing on the GPU: many calls in one CUDA graph, with operands that rotate through more memory than the cache holds.

A graph excludes the launch overhead, so it times kernels of microseconds as well as of milliseconds;
benchmarks/overhead.py measures the cost of a call from Python. Each call of a graph has its own results, because memory
that was just written would stay in the cache. On the CPU (rehearsal) the same calls run one by one.
"""

import time
from collections.abc import Callable

import torch

ROTATE_BYTES = 512 << 20  # the operands of one round; caches hold 50 to 130 MB


def rotations(bytes_per_call: int, device: str) -> int:
    """Returns the number of operand sets: just enough that the cache no longer holds a set when its turn comes."""
    if device == "cpu":
        return 2
    return max(2, min(64, -(-ROTATE_BYTES // bytes_per_call)))


def milliseconds(calls: list[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Returns milliseconds per call, one number per round. A round is all of ``calls`` once."""
    if device == "cpu":
        return _on_cpu(calls, rounds)
    graph, _results = captured(calls)
    return _by_events(graph.replay, len(calls), rounds)


def captured(calls) -> tuple[torch.cuda.CUDAGraph, list]:
    """Captures the calls as a graph, after a first call on a side stream as torch.cuda.graph requires. Returns the
    graph and the results."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    return graph, results


def eager_milliseconds(calls, device: str, rounds: int) -> list[float]:
    """Returns milliseconds per call without a graph, launched ahead of the GPU as in a network that keeps it busy."""
    if device == "cpu":
        return _on_cpu(calls, rounds)

    def all_of_them():
        for call in calls:
            call()

    return _by_events(all_of_them, len(calls), rounds)


def _by_events(function, count, rounds):
    """Times rounds of five milliseconds of calls of ``function``. The calls are queued while the GPU sleeps, so the
    time between the events is that of the GPU alone."""
    start = time.perf_counter()
    runs = 0
    while time.perf_counter() - start < 0.1:  # this also lets the clock frequency rise
        function()
        torch.cuda.synchronize()
        runs += 1
    repeats = max(1, min(50, round(runs * 0.005 / 0.1)))
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    queued = time.perf_counter() - start
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(min(1.5 * queued + 1e-4, 0.1) * 2e9))  # in cycles, at most 2e9 per second
        before.record()
        for _ in range(repeats):
            function()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / (count * repeats))
    return times


def _on_cpu(calls, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for call in calls:
            call()
        times.append(1e3 * (time.perf_counter() - start) / len(calls))
    return times
