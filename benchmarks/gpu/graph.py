"""Compares ``train.cuda_graph`` with the eager training step: first the bits, then the speed.

    python -m benchmarks.gpu.graph [--device cuda|cpu] [--quick] [--json FILE] [--resume]

Bits: deterministic kernels train a network for some steps in both ways, with SGD and AdamW, a batch that is shorter,
accumulation, clipping, a moving average, fp16 and bf16. All weights, optimizer states and sums must be equal.
Speed: images/s of SEW-ResNet-18 in bfloat16 at 224 x 224, and the milliseconds that Python needs per step. On a CPU
(rehearsal) only the eager step runs, because a CPU has no CUDA graphs.
"""

import time

import torch

from benchmarks.common import quantiles
from benchmarks.gpu.cases import Rows, parse
from sewsnn.models import create_model
from sewsnn.train import build
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.prefetch import to_channels_last
from sewsnn.train.schedule import set_lr
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums

SMALL = {"name": "sew_resnet", "blocks": [1, 1], "widths": [8, 16], "stem": "small", "T": 2}
# Learning rates that float32 holds exactly, because graphs keep them in float32.
BITS = {
    "sgd": {"optimizer": {"lr": 0.125, "weight_decay": 2**-10}, "train": {"amp": "bf16", "ema": 0.875}},
    "fp16": {"optimizer": {"lr": 0.125, "clip_norm": 1.0}, "train": {"amp": "fp16"}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 2**-7}, "loss": {"mixup": 0.25, "cutmix": 1.0}},
    "accumulated": {"optimizer": {"lr": 0.125}, "train": {"accumulate": 2, "amp": "bf16"}},
    "tet": {"optimizer": {"lr": 0.125}, "loss": {"name": "tet"}},
}
STEPS = {"cuda": 32, "cpu": 4}  # of the comparison of bits


class Run:
    """A training step and its batches on the device."""

    def __init__(self, model: dict, graphs: bool, device: str, settings: dict, sizes: list[int], image: int):
        torch.manual_seed(0)
        self.config = from_dict(settings | {"train": settings.get("train", {}) | {"cuda_graph": graphs}})
        classes = 10
        self.model = create_model(num_classes=classes, **model).to(device, memory_format=torch.channels_last)
        self.model.train()
        self.optimizer = build.build_optimizer(self.config, self.model)
        self.step = Step(self.config, self.model, self.optimizer, Processes(device), classes)
        self.sums = Sums(torch.device(device))
        self.batches = [
            (to_channels_last(torch.rand(n, 3, image, image, device=device)), torch.arange(n, device=device) % classes)
            for n in sizes
        ]
        self.done = 0

    def train(self, steps: int) -> None:
        every = self.config.train.accumulate
        for _ in range(steps):
            set_lr(self.optimizer, 2.0 ** -(self.done // 8))
            x, y = self.batches[self.done % len(self.batches)]
            last = self.done % every == every - 1
            self.step.run(x, y, 0, self.done, every, last, self.sums)
            self.done += 1

    def tensors(self) -> list[torch.Tensor]:
        average = self.step.average
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        values = self.sums.values(self.step.processes)
        sums = torch.tensor([values[name] for name in ("samples", "loss", "top1", "top5")], dtype=torch.float64)
        scale = torch.tensor(self.step.scaler.get_scale())
        parts = [*self.model.state_dict().values(), *states, sums, scale]
        return parts + (list(average.state_dict().values()) if average else [])


def compare_bits(device: str) -> None:
    """Raises SystemExit if a run with graphs differs from an eager one in a bit."""
    build.make_deterministic()
    try:
        for name, settings in BITS.items():
            # The last batch of each round is shorter, so it has a graph of its own.
            runs = [Run(SMALL, graphs, device, settings, [8, 8, 8, 4], 32) for graphs in (False, device == "cuda")]
            for run in runs:
                run.train(STEPS[device])
            different = sum(not torch.equal(a, b) for a, b in zip(*(run.tensors() for run in runs), strict=True))
            if different:
                raise SystemExit(f"{name}: {different} tensors of a run with graphs differ from those of an eager run")
            if (graphed := runs[1].step.graphed) and not graphed.replays:
                raise SystemExit(f"{name}: no step was replayed")
            how = f"{graphed.captures} graphs, {graphed.replays} replays" if graphed else "no graphs on a CPU"
            print(f"bits of {name}: equal ({how})", flush=True)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True


def measure(arguments, rows: Rows) -> None:
    """Adds rows with images/s and the time of Python per step."""
    device = arguments.device
    model, image, sizes = {"name": "sew_resnet18", "T": 4}, 224, (8, 32)
    if arguments.quick:
        model, image, sizes = SMALL, 16, (2,)
    settings = {"optimizer": {"lr": 0.125}, "train": {"amp": "bf16", "channels_last": True}}
    for size in sizes:
        for provider in ("eager", "graph") if device == "cuda" else ("eager",):
            case, place = "training_step", f"batch {size}"
            if rows.has(case, provider, "bfloat16", place):
                continue
            run = Run(model, provider == "graph", device, settings, [size] * 2, image)
            run.train(8)  # warm-up and capture
            seconds, host = [], []
            for _ in range(arguments.rounds):
                _synchronize(device)
                start = time.perf_counter()
                run.train(10)
                host.append((time.perf_counter() - start) / 10)
                _synchronize(device)
                seconds.append((time.perf_counter() - start) / 10)
            row = {
                "case": case,
                "provider": provider,
                "dtype": "bfloat16",
                "place": place,
                "shape": [size, 3, image, image],
            }
            row |= {f"{k}_ms": 1e3 * v for k, v in quantiles(seconds).items()}
            row |= {"images_per_s": size / quantiles(seconds)["p50"], "host_ms": 1e3 * quantiles(host)["p50"]}
            rows.add(row)
            del run
    if device == "cpu":
        print("a CPU has no CUDA graphs: only the eager step was timed")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    arguments = parse(__doc__)
    compare_bits(arguments.device)
    measure(arguments, Rows(arguments, "step"))


if __name__ == "__main__":
    main()
