"""Where CUDA graphs are possible, and how torch.cuda captures them; a pretended torch.cuda stands for the real one."""

import contextlib

import pytest
import torch

from sewsnn.errors import ConfigError
from sewsnn.train import graph, limits
from sewsnn.train.config import from_dict

pytestmark = pytest.mark.usefixtures("one_thread")


class Pretended:
    """The parts of torch.cuda that a capture uses; ``log`` has the calls in their order."""

    def __init__(self, monkeypatch):
        self.log, self.current, self.broken = [], "main", False
        log = self.log

        class Stream(str):
            def __new__(cls, name="side"):
                return str.__new__(cls, "side" if isinstance(name, torch.device) else name)

            def wait_stream(self, other):
                log.append(f"{self} waits for {other}")

        @contextlib.contextmanager
        def stream(entered):
            before, self.current = self.current, entered
            try:
                yield
            finally:
                self.current = before

        class Graph:
            def pool(self):
                return "pool"

            def replay(self):
                log.append("replay")

        @contextlib.contextmanager
        def capture(made, pool, stream, capture_error_mode):
            log.append(f"capture on {stream} in {pool}, {capture_error_mode}")
            self.current = stream  # if the capture breaks, torch does not return to the stream before it
            try:
                yield
            except Exception:
                raise RuntimeError("CUDA error: a previous error during capture") from None
            self.current = "main"

        parts = {"Stream": Stream, "stream": stream, "CUDAGraph": Graph, "graph": capture}
        parts["current_stream"] = lambda device: Stream(self.current)
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)


def test_streams_and_memory_of_a_capture(monkeypatch):
    """Warm-up and capture use one side stream, which waits for the data and for which later steps wait."""
    cuda = Pretended(monkeypatch)
    graphs = graph.CudaGraphs(torch.device("cuda"))
    graphs.warm_up(lambda: cuda.log.append(f"work on {cuda.current}"))
    assert cuda.log == ["side waits for main", "work on side", "main waits for side"]
    for pool in (None, "pool"):
        cuda.log.clear()
        graphs.capture(lambda: cuda.log.append(f"work on {cuda.current}"))()
        assert cuda.log == [f"capture on side in {pool}, thread_local", "work on side", "replay"]
    assert cuda.current == "main"


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_the_first_error_of_a_broken_capture_is_told(error, monkeypatch):
    cuda = Pretended(monkeypatch)

    def work():
        raise error("the cause")

    with pytest.raises(error, match="the cause"):
        graph.CudaGraphs(torch.device("cuda")).capture(work)
    assert cuda.current == "main"


@pytest.mark.parametrize(
    "device, world, words",
    [("cpu", 1, "needs a GPU, but this run is on cpu"), ("cuda", 2, "works with one process, got 2")],
)
def test_where_there_are_no_graphs_the_setting_is_named(device, world, words):
    config = from_dict({"train": {"cuda_graph": True}})
    with pytest.raises(ConfigError, match=rf"train\.cuda_graph: true {words}.*set train\.cuda_graph: false"):
        graph.recorder(config, torch.device(device), world)
    assert graph.recorder(from_dict({}), torch.device(device), world) is None


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_two_kinds_of_graphs_exclude_each_other(mode):
    with pytest.raises(ConfigError, match=rf"train\.cuda_graph: true and train\.compile: {mode} exclude each other"):
        limits.check(from_dict({"train": {"cuda_graph": True, "compile": mode}}))
