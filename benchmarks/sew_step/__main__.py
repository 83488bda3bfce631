"""Times a training step of a SEW ResNet (forward, cross entropy, backward, SGD), sewsnn beside other implementations.

    python -m benchmarks.sew_step [--device cpu|cuda] [--models sew_resnet18 ...] [--batch N] [--size 224]
                                  [--dtype float32|bfloat16] [--providers fused plain ...] [--check] [--json FILE]

benchmarks/sew_step/networks.py describes the implementations (providers). torch.compile takes part by default only on
CUDA, since on a CPU it compiles for minutes. Each provider, contiguous and channels_last, has its own process for the
whole run. In every round each process runs a step, one after the other. All start from the same weights with the same
random images.

Columns:

- `p20_ms`, `p50_ms`, `p80_ms`: time of the step.
- `conv_ms`: time of the convolutions, forward and backward, measured with a stopwatch in the same step. On CUDA, and
  for compile and packed, it comes from a profile of the step after it. `other_ms`: the rest of the step. Both are
  medians over the rounds.
- `peak_MiB`: the highest memory of a step above that before the first one (resident on the CPU, allocated on CUDA),
  including gradients. On the CPU it includes memory that an allocator keeps from step to step: glibc's (`malloc` shows
  its settings) and sewsnn's (`keep_MB` shows SEWSNN_CPU_KEEP_MB).
- `saved_MiB`: memory that forward saves for backward, without the parameters.
- `loss_error`, `grad_error`: relative difference of the loss, and of conv1's gradient, from plain in the same memory
  format. Networks that round differently show here: a membrane potential within rounding of the threshold fires in one
  and not in the other, and one more spike changes a gradient through eighteen layers completely (grad_error of the
  order of 1).
- `exact_loss_error`, `exact_grad_error`: the same in float64 on two small images, where only rounding remains. These
  columns show whether the networks compute the same function.

bfloat16 means autocast; on CUDA, SpikingJelly then uses `PrecisionConfig(neuron_storage="bf16")`.
"""

import argparse
import importlib
import os
import time

from benchmarks.common import append_rows, environment, quantiles
from benchmarks.sew_step.judge import compared, mark_best, too_bad
from benchmarks.sew_step.networks import MEMORY_FORMATS, PROVIDERS, SPIKINGJELLYS, Case, available
from benchmarks.sew_step.worker import Worker


def relative_error(values: list[float], reference: list[float]) -> float:
    """Returns the relative difference in the Euclidean norm."""
    difference = sum((a - b) ** 2 for a, b in zip(values, reference, strict=True))
    return (difference / sum(b**2 for b in reference)) ** 0.5


class Rows:
    """The rows of one case, one per worker. A provider that fails keeps its error and takes no further part."""

    def __init__(self, case: Case, providers: list[str]):
        names = {"case": case.model, "dtype": case.dtype, "batch": case.batch, "T": case.T, "size": case.size}
        self.rows = [
            names | {"provider": provider, "memory_format": memory_format}
            for provider in providers
            for memory_format in MEMORY_FORMATS
        ]
        self.workers = {i: Worker(row["provider"], case, row["memory_format"]) for i, row in enumerate(self.rows)}
        self._each(Worker.answer)

    def ask(self, command: str, *arguments) -> dict[int, object]:
        """Returns the answers of all workers that are still alive, asked one after the other."""
        return self._each(lambda worker: worker(command, *arguments))

    def _each(self, call) -> dict[int, object]:
        answers = {}
        for i in list(self.workers):
            self._one(i, call, answers)
        return answers

    def _one(self, i: int, call, answers: dict[int, object]) -> None:
        try:
            answers[i] = call(self.workers[i])
        except RuntimeError as error:
            self.rows[i]["error"] = str(error)
            self.workers.pop(i).close()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def measure(case: Case, providers: list[str], repeats: int) -> list[dict]:
    """Returns a row for each provider and memory format."""
    found = Rows(case, providers)
    try:
        compare(found, "gradient", "")
        for i, memory in found.ask("memory").items():
            found.rows[i] |= memory
        compare(found, "exact_gradient", "exact_")
        steps = 1 if case.device == "cpu" else 5
        turns = [found.ask("turn", steps) for _ in range(repeats)]
        for i in found.workers:
            bare, convolutions = zip(*(turn[i] for turn in turns), strict=True)
            other = [a - b for a, b in zip(bare, convolutions, strict=True)]
            found.rows[i] |= {f"{name}_ms": value for name, value in quantiles(bare).items()}
            found.rows[i] |= {"conv_ms": quantiles(convolutions)["p50"], "other_ms": quantiles(other)["p50"]}
    finally:
        found.close()
    mark_best(found.rows)
    return found.rows


def compare(found: Rows, command: str, prefix: str) -> None:
    """Adds the relative differences from plain, in the same memory format, to the rows."""
    answers = found.ask(command)
    references = {found.rows[i]["memory_format"]: a for i, a in answers.items() if found.rows[i]["provider"] == "plain"}
    if len(references) < len(MEMORY_FORMATS):
        errors = [row["error"] for row in found.rows if row["provider"] == "plain" and "error" in row]
        raise SystemExit(f"the reference provider, plain, failed: {errors[0]}")
    for i, (loss, grad) in answers.items():
        right_loss, right_grad = references[found.rows[i]["memory_format"]]
        found.rows[i] |= {
            f"{prefix}loss_error": relative_error([loss], [right_loss]),
            f"{prefix}grad_error": relative_error(grad, right_grad),
        }


def allocators() -> dict:
    """Returns the settings that affect the memory and the speed of the CPU."""
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    keep = os.environ.get("SEWSNN_CPU_KEEP_MB", "default")
    return {"keep_MB": keep, "malloc": " ".join(settings) or "default", "preload": os.environ.get("LD_PRELOAD", "")}


def print_rows(rows: list[dict]) -> None:
    columns = {"p20_ms": ".1f", "p50_ms": ".1f", "p80_ms": ".1f", "conv_ms": ".1f", "other_ms": ".1f"}
    columns |= {"peak_MiB": ".0f", "saved_MiB": ".0f", "loss_error": ".0e", "grad_error": ".0e"}
    columns |= {"exact_loss_error": ".0e", "exact_grad_error": ".0e"}
    print(f"{'provider':>20} {'memory_format':>14} " + " ".join(f"{name[-10:]:>10}" for name in columns))
    for row in rows:
        cells = [format(row[c], f) if row[c] is not None else "?" for c, f in columns.items() if "error" not in row]
        star = "*" if row.get("best") else " "
        print(
            f"{row['provider']:>20} {row['memory_format']:>13}{star} "
            + (" ".join(f"{cell:>10}" for cell in cells) or row["error"])
        )


def print_ratios(rows: list[dict], case: str) -> None:
    for provider in dict.fromkeys(row["provider"] for row in rows):
        if provider != "fused" and (ratios := compared(rows, case, provider)):
            print(f"fused beside {provider}: " + ", ".join(f"{column} {r:.2f}x" for column, r in ratios.items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["sew_resnet18"],
        help="names, or JSON with a name and arguments (default: sew_resnet18)",
    )
    parser.add_argument(
        "--providers", nargs="+", choices=PROVIDERS, help="implementations to time; plain is always included"
    )
    parser.add_argument("--batch", type=int, help="images per batch (default: 4 on a CPU, 32 on CUDA)")
    parser.add_argument("--size", type=int, default=224, help="height and width of an image in pixels (default: 224)")
    parser.add_argument("--T", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--check", action="store_true", help="fail if fused does not reach the required ratios to SpikingJelly"
    )
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    arguments.batch = arguments.batch or (32 if cuda else 4)
    chosen = arguments.providers or [name for name in PROVIDERS if cuda or name != "compile"]
    if missing := [name for name in chosen if not available(name)]:
        print(f"left out, because they are not installed: {', '.join(missing)}")
    arguments.providers = ["plain", *(name for name in chosen if name not in ("plain", *missing))]
    return arguments


def main() -> None:
    arguments = parse()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler prints when it starts and stops
    if not SPIKINGJELLYS.isdisjoint(arguments.providers):
        importlib.import_module("spikingjelly")  # environment() then names its version
    about = environment(arguments.device) | allocators() | {"run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    print("A training step, " + ", ".join(f"{k} {v}" for k, v in about.items()), flush=True)
    rows = []
    for model in arguments.models:
        case = Case(model, arguments.batch, arguments.size, arguments.T, arguments.dtype, arguments.device)
        print(f"{model}, batch {case.batch}, {case.size} x {case.size}, T = {case.T}, {case.dtype}", flush=True)
        new = measure(case, arguments.providers, arguments.repeats)
        print_rows(new)
        print_ratios(new, model)
        rows += new
        if arguments.json:
            append_rows(arguments.json, [row | about for row in new])
    if arguments.check and (reasons := too_bad(rows)):
        raise SystemExit("\n".join(reasons))


if __name__ == "__main__":
    main()
