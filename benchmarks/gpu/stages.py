"""The stages of a GPU run, the most important first: if time runs out, only the least important are missing."""

import shutil
import subprocess
import sys
from dataclasses import dataclass

PYTHON = sys.executable
# A faulty kernel can make the device unusable for all later tests of its process.
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--maxfail=15", "--timeout=120"]


@dataclass(frozen=True)
class Stage:
    """One stage, a subprocess.

    Attributes:
        name: the name of the stage.
        command: the command, run in the root of the repository; ``{json}`` stands for the file of the rows.
        limit_s: seconds after which the stage is stopped and counts as failed.
        needs: a program without which the stage is skipped.
        enough_s: the stage does not start with fewer seconds left.
        says: texts that its output must contain.
    """

    name: str
    command: tuple[str, ...]
    limit_s: int
    needs: str | None = None
    enough_s: int = 20
    says: tuple[str, ...] = ()


def sanitizer(tool: str, *options: str, what: str = "tiny") -> Stage:
    """Returns a stage that runs compute-sanitizer over every kernel on tiny shapes."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", *options)
    command = (*command, PYTHON, "-m", f"benchmarks.gpu.{what}")
    name = f"sanitize_{tool}" + what.removeprefix("tiny")
    return Stage(name, command, 400, "compute-sanitizer", 60, ("cases agree", "SUMMARY"))


def only_ours() -> tuple[str, ...]:
    """Returns the option with which this compute-sanitizer checks only sewsnn's kernels and not those of torch."""
    try:
        text = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    except OSError:
        text = ""
    option = "--kernel-regex" if "--kernel-regex" in text else "--kernel-name"
    return (option, "kns=sewsnn")  # part of the mangled name


def stages(device: str, quick: bool) -> list[Stage]:
    """Returns all stages. ``device="cpu"`` gives a rehearsal: the same stages with small cases on a machine without a
    GPU."""
    cuda = device == "cuda"
    marked = ("-m", "cuda" if cuda else "not cuda")
    alone = ("tests/test_cuda.py", "tests/test_cuda_blocks.py") if cuda else ("tests/test_surrogate.py",)
    chosen = (
        ("tests/native/test_kernels.py", "tests/test_bn_neuron.py", "tests/test_stem.py")
        if cuda
        else ("tests/test_func.py",)
    )
    training = "tests/test_training_cuda.py" if cuda else "tests/test_training_parts.py"
    few = ("-k", "test_grad") if quick else ()
    side_by_side = ("-n", "4") if cuda else ()  # the reference runs on the CPU
    small = ("--quick",) if quick else ()
    ours = only_ours()
    rows = ("--device", device, "--json", "{json}", "--resume", *small)
    return [
        Stage("library", (PYTHON, "-m", "benchmarks.gpu.library", "--device", device), 580, enough_s=5),
        Stage("smoke", (PYTHON, "-m", "benchmarks.gpu.tiny", "--device", device), 120),
        Stage("smoke_blocks", (PYTHON, "-m", "benchmarks.gpu.tiny_blocks", "--device", device), 200),
        Stage("tests_cuda", (*PYTEST, *marked, *alone), 200),
        Stage("tests_kernels", (*PYTEST, *marked, *side_by_side, *chosen, *few), 400, enough_s=90),
        Stage("time_neurons", (PYTHON, "-m", "benchmarks.gpu.neuron", *rows), 300, enough_s=60),
        Stage("time_blocks", (PYTHON, "-m", "benchmarks.gpu.blocks", *rows), 400, enough_s=90),
        Stage("time_steps", steps(device, quick), 500, enough_s=120),
        Stage("time_graph", (PYTHON, "-m", "benchmarks.gpu.graph", *rows), 300, enough_s=60),
        Stage("tests_training", (*PYTEST, *marked, training), 300),
        Stage("overhead", (PYTHON, "-m", "benchmarks.overhead", "--device", device, "--json", "{json}"), 60),
        sanitizer("memcheck", *ours),
        sanitizer("racecheck", *ours),
        sanitizer("initcheck"),  # this check must also track the writes of torch's kernels
        sanitizer("synccheck", *ours),
        sanitizer("memcheck", *ours, what="tiny_blocks"),
        sanitizer("racecheck", *ours, what="tiny_blocks"),
        Stage("time_rivals", (PYTHON, "-m", "benchmarks.gpu.rivals", *rows), 400, enough_s=120),
        Stage("counters", counters("tiny"), 300, "ncu", 60, ("forward_kernel",)),
        Stage("counters_blocks", counters("tiny_blocks"), 300, "ncu", 60, ("bn_reduce_kernel",)),
        Stage("tests_all", (*PYTEST, *marked, *side_by_side, "tests", *few), 580, enough_s=200),
    ]


def steps(device: str, quick: bool) -> tuple[str, ...]:
    """Returns the command that times whole training steps of SEW ResNets."""
    command = (PYTHON, "-m", "benchmarks.sew_step", "--device", device, "--json", "{json}")
    if quick:
        small = '{"name": "sew_resnet", "blocks": [1], "widths": [8]}'
        return (*command, "--models", small, "--batch", "2", "--size", "32", "--repeats", "2", "--providers", "fused")
    return (*command, "--dtype", "bfloat16", "--models", "sew_resnet18", "sew_resnet50")


def counters(what: str) -> tuple[str, ...]:
    """Returns the command that measures bytes, occupancy and stalls with Nsight Compute."""
    metrics = (
        "dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
        "gpu__time_duration.sum,sm__warps_active.avg.pct_of_peak_sustained_active,"
        "launch__registers_per_thread,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
    )
    command = ("ncu", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", metrics)
    return (
        *command,
        "-k",
        "regex:^(bn_|pool_|)(forward|backward|sum_partials|statistics|reduce|apply)_kernel",
        PYTHON,
        "-m",
        f"benchmarks.gpu.{what}",
        "--large",
    )


def available(stage: Stage) -> bool:
    """Returns whether the program that the stage needs is installed."""
    return stage.needs is None or shutil.which(stage.needs) is not None
