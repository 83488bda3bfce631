"""Timing on the GPU: many calls in one CUDA graph, over operands that rotate through more memory than the cache holds.

A graph leaves out what launching costs, and so times kernels of microseconds as well as of milliseconds; what a call
from Python costs besides is for benchmarks/overhead.py to say. Each call of a graph has results of its own: in memory
written a moment before they would never leave the cache. On the CPU (rehearsal) the same calls run one by one.
"""

import time
from collections.abc import Callable

import torch

ROTATE_BYTES = 512 << 20  # the operands of one round; caches hold 50 to 130 MB


def rotations(bytes_per_call: int, device: str) -> int:
    """How many sets of operands: enough to leave no cache warm, not more than needed."""
    if device == "cpu":
        return 2
    return max(2, min(64, -(-ROTATE_BYTES // bytes_per_call)))


def milliseconds(calls: list[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Per call, one number a round; a round is all of ``calls`` once."""
    if device == "cpu":
        return _on_cpu(calls, rounds)
    graph, _results = captured(calls)
    return _by_events(graph.replay, len(calls), rounds)


def captured(calls) -> tuple[torch.cuda.CUDAGraph, list]:
    """The calls as a graph, after a first time on a side stream, as torch.cuda.graph asks for; and their results."""
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
    """Per call, without a graph, launched ahead of the GPU: as in a network that keeps it busy."""
    if device == "cpu":
        return _on_cpu(calls, rounds)

    def all_of_them():
        for call in calls:
            call()

    return _by_events(all_of_them, len(calls), rounds)


def _by_events(function, count, rounds):
    """A round is as many calls of ``function`` as take five milliseconds. They are queued while the GPU sleeps, so that
    what is between the events is the GPU's time alone."""
    start = time.perf_counter()
    runs = 0
    while time.perf_counter() - start < 0.1:  # also lets the clocks rise
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
        torch.cuda._sleep(
            int(min(1.5 * queued + 1e-4, 0.1) * 2e9)
        )  # cycles, of which there are 2e9 in a second at most
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
