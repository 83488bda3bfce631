"""The kernels that serve the shapes of SEW ResNets, and the prediction of their speed."""

from dataclasses import dataclass

from benchmarks.common import read_rows
from benchmarks.machine_code.counts import count_of, executed_sass, read_counts
from benchmarks.machine_code.model import DEVICES, Prediction, Work, predict
from benchmarks.machine_code.names import sources_of, title
from benchmarks.machine_code.rows import COMMAND, RESULTS
from benchmarks.machine_code.traffic import work

ARCH = 90
STORAGES = ("float", "bfloat16")
#: a flag of instances whose settings are known at compile time; they are chosen where they exist
USUAL = "Usual"


@dataclass(frozen=True)
class Hot:
    """A hot kernel: its name in tables, its template arguments, and the numbers of time-steps."""

    name: str
    kernel: str
    arguments: dict
    steps: tuple[int, ...] = (4, 8, 16)


#: LIF with tau = 2; ADD's backward does not read the shortcut, so it has no Shortcut
HOT = (
    Hot("forward", "forward_kernel", {"Neuron": "LeakyMultiply"}),
    Hot("backward", "backward_kernel", {"Neuron": "LeakyMultiply", "Leak": False}),
    Hot("bn statistics", "bn_statistics_kernel", {}, (4,)),
    Hot("bn forward", "bn_forward_kernel", {"Shortcut": False}),
    Hot("bn forward, ADD", "bn_forward_kernel", {"Shortcut": True}),
    Hot("bn reduce", "bn_reduce_kernel", {"Shortcut": False}),
    Hot("bn apply", "bn_apply_kernel", {"Shortcut": False}),
    Hot("stem forward", "pool_forward_kernel", {}, (4,)),
    Hot("stem reduce", "pool_reduce_kernel", {}, (4,)),
    Hot("stem apply", "pool_apply_kernel", {}, (4,)),
)


@dataclass(frozen=True)
class Predicted:
    """The prediction of one hot kernel.

    Attributes:
        hot: the kernel.
        storage: dtype of its tensors.
        T: number of time-steps.
        code: its row of machine code.
        work: what a thread does.
        start: SASS instructions before and after the rows of a thread.
        limits: the prediction.
        old: what was measured from other sources than the present ones, or an empty text.
    """

    hot: Hot
    storage: str
    T: int
    code: dict
    work: Work
    start: float
    limits: Prediction
    old: str


def serving(rows: list[dict], hot: Hot, storage: str, T: int) -> dict:
    """Returns the row of the instance that serves aligned tensors of T time-steps, as csrc/kernels/*_launch.cuh choose
    it: the shortest chunk K that holds T, else the longest; then the widest pack N; then the usual settings.

    Raises:
        SystemExit: there is no such instance.
    """
    fit = [r for r in rows if r["arch"] == ARCH and r["kernel"] == hot.kernel and r["Storage"] == storage]
    # Without a neuron among the arguments: the instance for common neurons, which has none either.
    fit = [r for r in fit if all(r.get(n) == value for n, value in {"Neuron": None, **hot.arguments}.items())]
    if not fit:
        raise SystemExit(f"no machine code of {hot.kernel} for {storage}, sm_{ARCH}: {COMMAND}")
    return min(
        fit,
        key=lambda r: (
            r.get("K", T) < T,
            r.get("K", T) * (1 if r.get("K", T) >= T else -1),
            -r["N"],
            not r.get(USUAL, False),
        ),
    )


def age(code: dict, count: dict) -> str:
    """Returns which of these rows are of other sources than the present ones."""
    now = sources_of(code)
    parts = {"machine code": code["sources"] != now, "instruction count": count["sources"] != now}
    return " and ".join(name for name, other in parts.items() if other)


def prediction(rows: list[dict], counts: dict, hot: Hot, storage: str, T: int) -> Predicted:
    """Returns the prediction of one kernel."""
    code = serving(rows, hot, storage, T)
    if "stall" not in code:
        raise SystemExit(f"the machine code of {title(code)} has no stall counts: {COMMAND}")
    joined = hot.kernel == "bn_statistics_kernel"  # counted per time-step
    count = count_of(counts, title(code), 1 if joined else T)
    instructions, start = executed_sass(count, code)
    done = work(code, T, instructions * (T if joined else 1))
    return Predicted(hot, storage, T, code, done, start, predict(done, code["blocks"], code["stall"]), age(code, count))


def predictions(rows: list[dict] | None = None, counts: dict | None = None) -> list[Predicted]:
    """Returns the predictions of all hot kernels.

    Args:
        rows: rows of machine code; None takes those in benchmarks/results.
        counts: executed instructions as :func:`counts.read_counts` returns them, which is what None takes.

    Raises:
        SystemExit: the machine code or the executed instructions of a kernel are missing.
    """
    rows = read_rows(RESULTS) if rows is None else rows
    counts = read_counts() if counts is None else counts
    return [prediction(rows, counts, hot, storage, T) for hot in HOT for storage in STORAGES for T in hot.steps]


HEAD = ["kernel", "T", "executed", "start", "stall", "blocks", "bursts", "KB", "issue", "latency", *DEVICES, ""]


def cells(p: Predicted) -> list[str]:
    """Returns the cells of a line: those of :data:`HEAD`."""
    needed = p.limits.needed(DEVICES["H100"])
    line = [title(p.code), str(p.T), f"{p.work.instructions:.0f}", f"{p.start:.0f}", f"{p.code['stall']:.1f}"]
    line += [str(p.code["blocks"]), f"{p.work.bursts:g}", f"{p.limits.flying / 1024:.0f} / {needed / 1024:.1f}"]
    line += [f"{p.limits.issue / 1e12:.1f}", f"{p.limits.latency / 1e12:.1f}"]
    line += [f"{p.limits.share(device):.0%} {p.limits.limit(device)}" for device in DEVICES.values()]
    return [*line, f"old {p.old}" if p.old else ""]


def text_table(found: list[Predicted]) -> str:
    """Returns the table for a terminal."""
    lines = [HEAD, *map(cells, found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(" ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
