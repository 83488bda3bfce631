"""Times training with several processes: a step with and without the all-reduce of gradients, and the all-reduce.

    python -m benchmarks.scaling [--quick] [--json FILE]                   1 and 2 processes on this machine
    torchrun --nproc-per-node 8 -m benchmarks.scaling --device cuda ...    the processes that torchrun starts

A step is forward, backward and SGD with DistributedDataParallel on random images. A round consists of one step, one
step without the all-reduce (``no_sync``), and one all-reduce with as many bytes as the gradients, each after a barrier.
The time of a round is that of the slowest process. CPU processes have one thread each. The numbers are meaningless if
the processes outnumber the cores or other programs run; the rows record the load.
"""

import argparse
import os
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import append_rows, environment, quantiles
from sewsnn.models import create_model

_WARM_UP = 2  # rounds


def network(arguments) -> nn.Module:
    torch.manual_seed(0)
    if arguments.quick:
        sizes = {"blocks": [1, 1], "widths": [8, 16], "num_classes": 10}
        return create_model("sew_resnet", T=arguments.T, **sizes)
    return create_model(arguments.network, T=arguments.T)


class _Process:
    """One of the processes that train together."""

    def __init__(self, arguments):
        self.cuda = arguments.device == "cuda"
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.cuda else torch.device("cpu")
        if self.cuda:
            torch.cuda.set_device(self.device)
        model = network(arguments).to(self.device)
        self.amp = torch.autocast(self.device.type, torch.bfloat16, enabled=arguments.amp)
        self.model = DistributedDataParallel(model, device_ids=[self.device.index] if self.cuda else None)
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        self.x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=self.device)
        self.y = torch.randint(0, 10, (arguments.batch,), device=self.device)
        self.gradients = torch.zeros(sum(p.numel() for p in model.parameters()), device=self.device)

    def step(self) -> None:
        with self.amp:
            loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def step_alone(self) -> None:
        with self.model.no_sync():
            self.step()

    def all_reduce(self) -> None:
        dist.all_reduce(self.gradients)

    def seconds(self, call) -> float:
        """Returns the seconds of the slowest process."""
        dist.barrier()
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        taken = torch.tensor(time.perf_counter() - start, device=self.device, dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return float(taken)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def rounds(self, count: int) -> dict[str, list[float]]:
        """Returns the seconds of each call in each round; the calls alternate."""
        calls = {"step": self.step, "step_alone": self.step_alone, "all_reduce": self.all_reduce}
        found = {name: [] for name in calls}
        for i in range(_WARM_UP + count):
            for name, call in calls.items():
                seconds = self.seconds(call)
                if i >= _WARM_UP:
                    found[name].append(seconds)
        return found


def measure(arguments) -> dict:
    """Returns a row of results. The process group must exist."""
    process = _Process(arguments)
    size = process.gradients.numel() * process.gradients.element_size()
    rounds = process.rounds(arguments.repeats)
    found = {name: {"least": min(times), **quantiles(times)} for name, times in rounds.items()}
    middle = {name: times["p50"] for name, times in found.items()}
    processes = dist.get_world_size()
    return {
        "case": "scaling",
        "provider": f"DistributedDataParallel, {dist.get_backend()}",
        "network": "quick" if arguments.quick else arguments.network,
        "processes": processes,
        "batch": arguments.batch,
        "size": arguments.size,
        "T": arguments.T,
        "amp": arguments.amp,
        "gradient_bytes": size,
        **{f"{name}_{q}_ms": 1e3 * value for name, times in found.items() for q, value in times.items()},
        "images_per_s": processes * arguments.batch / middle["step"],
        "exchange_ms": 1e3 * (middle["step"] - middle["step_alone"]),
        "hidden": 1 - (middle["step"] - middle["step_alone"]) / middle["all_reduce"] if processes > 1 else None,
        "all_reduce_bus_gb_s": 2 * (processes - 1) / processes * size / middle["all_reduce"] / 1e9,
        "repeats": arguments.repeats,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **environment(arguments.device),
    }


def _report(row: dict, arguments) -> None:
    print(
        f"{row['processes']:>9} {row['step_p50_ms']:>10.1f} {row['step_alone_p50_ms']:>17.1f} "
        f"{row['all_reduce_p50_ms']:>10.2f} {row['gradient_bytes'] / 1e6:>6.1f} "
        f"{'-' if row['hidden'] is None else format(row['hidden'], '.2f'):>7} {row['images_per_s']:>9.1f}",
        flush=True,
    )
    if arguments.json:
        append_rows(arguments.json, [row])


def _run(rank: int, processes: int, port: int, arguments) -> None:
    """Runs one of the processes that this program starts itself."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    _join(arguments, rank=rank, world_size=processes)


def _join(arguments, **group) -> None:
    dist.init_process_group("nccl" if arguments.device == "cuda" else "gloo", **group)
    try:
        row = measure(arguments)
        if dist.get_rank() == 0:
            _report(row, arguments)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="sew_resnet18")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="images per process and step")
    parser.add_argument("--size", type=int, default=64, help="width and height of an image in pixels")
    parser.add_argument("--T", type=int, default=4)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        help="numbers of processes to start without torchrun (default: 1 2)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a very small network and few rounds, to test the program; not a result"
    )
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.batch, arguments.size, arguments.repeats = 2, 16, 3
    if min(arguments.batch, arguments.size, arguments.T, *arguments.processes) < 1 or arguments.repeats < 2:
        parser.error("batch, size, T and processes must be at least 1, repeats at least 2")
    return arguments


def main() -> None:
    arguments = parse()
    under_torchrun = "RANK" in os.environ
    if not under_torchrun or os.environ["RANK"] == "0":
        print(f"{'processes':>9} {'step / ms':>10} {'no all-reduce':>17} {'all-reduce':>10} {'MB':>6} ", end="")
        print(f"{'hidden':>7} {'images/s':>9}", flush=True)
    if under_torchrun:
        _join(arguments)
        return
    for processes in arguments.processes:
        mp.spawn(_run, (processes, _free_port(), arguments), nprocs=processes)


if __name__ == "__main__":
    main()
