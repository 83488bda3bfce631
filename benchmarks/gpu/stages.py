"""The stages of a GPU run, in the order of their worth: if time runs out, what is missing is what matters least."""

import shutil
import subprocess
import sys
from dataclasses import dataclass

PYTHON = sys.executable
# A kernel that goes wrong can leave every later test of its process without a device.
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--maxfail=15", "--timeout=120"]


@dataclass(frozen=True)
class Stage:
    """One subprocess.

    Attributes:
        command: run in the repository's root; ``{json}`` stands for the file its rows go to.
        limit_s: it is stopped after that long, and counts as failed.
        needs: a program without which the stage is skipped.
        enough_s: not begun with less time left than this.
        says: what its output must contain.
    """

    name: str
    command: tuple[str, ...]
    limit_s: int
    needs: str | None = None
    enough_s: int = 20
    says: tuple[str, ...] = ()


def sanitizer(tool: str, *options: str, what: str = "tiny") -> Stage:
    """compute-sanitizer over every kernel on tiny shapes."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", *options)
    command = (*command, PYTHON, "-m", f"benchmarks.gpu.{what}")
    name = f"sanitize_{tool}" + what.removeprefix("tiny")
    return Stage(name, command, 400, "compute-sanitizer", 60, ("cases agree", "SUMMARY"))


def only_ours() -> tuple[str, ...]:
    """How this compute-sanitizer is told to look at our kernels alone; torch's own are not ours to check."""
    try:
        text = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    except OSError:
        text = ""
    option = "--kernel-regex" if "--kernel-regex" in text else "--kernel-name"
    return (option, "kns=sewsnn")  # a part of the mangled name


def stages(device: str, quick: bool) -> list[Stage]:
    """All of them. ``device="cpu"`` rehearses: the same stages, small, on a machine without a GPU."""
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
        Stage("tests_training", (*PYTEST, *marked, training), 300),
        Stage("overhead", (PYTHON, "-m", "benchmarks.overhead", "--device", device, "--json", "{json}"), 60),
        sanitizer("memcheck", *ours),
        sanitizer("racecheck", *ours),
        sanitizer("initcheck"),  # what torch's kernels write has to be seen, too
        sanitizer("synccheck", *ours),
        sanitizer("memcheck", *ours, what="tiny_blocks"),
        sanitizer("racecheck", *ours, what="tiny_blocks"),
        Stage("time_rivals", (PYTHON, "-m", "benchmarks.gpu.rivals", *rows), 400, enough_s=120),
        Stage("counters", counters("tiny"), 300, "ncu", 60, ("forward_kernel",)),
        Stage("counters_blocks", counters("tiny_blocks"), 300, "ncu", 60, ("bn_reduce_kernel",)),
        Stage("tests_all", (*PYTEST, *marked, *side_by_side, "tests", *few), 580, enough_s=200),
    ]


def steps(device: str, quick: bool) -> tuple[str, ...]:
    """Whole training steps of SEW ResNets."""
    command = (PYTHON, "-m", "benchmarks.sew_step", "--device", device, "--json", "{json}")
    if quick:
        small = '{"name": "sew_resnet", "blocks": [1], "widths": [8]}'
        return (*command, "--models", small, "--batch", "2", "--size", "32", "--repeats", "2", "--providers", "fused")
    return (*command, "--dtype", "bfloat16", "--models", "sew_resnet18", "sew_resnet50")


def counters(what: str) -> tuple[str, ...]:
    """Nsight Compute: what the hardware says of bytes, occupancy and stalls."""
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
    """Whether the program it needs is there."""
    return stage.needs is None or shutil.which(stage.needs) is not None
