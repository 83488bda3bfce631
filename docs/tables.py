"""Writes the tables of docs/models.md: sizes from sewsnn.analysis.count_operations, accuracies from
sewsnn.models.published.

python -m docs.tables            writes them
python -m docs.tables --check    exits with an error if they are not up to date
"""

from pathlib import Path

from docs.marks import fill, main
from sewsnn.analysis import Operations
from sewsnn.analysis.networks import size_of
from sewsnn.models import list_models
from sewsnn.models.published import RESULTS, TASKS, Result, Task, published, task_of

PAGE = Path(__file__).parent / "models.md"
COMMAND = "python -m docs.tables"
ORDER = ("sew", "spiking", "plain")


def names_of(data: str) -> list[str]:
    """Returns the networks for a data set in this order: SEW, Spiking, plain; small before large."""
    names = [name for name in list_models() if (task := task_of(name)) and task.data == data]
    return sorted(names, key=lambda name: (ORDER.index(name.split("_")[0]), len(name), name))


def real_layers(found: Operations) -> tuple[str, str]:
    """Returns the names of the two layers that do not read spikes: the first convolution, which reads the image, and
    the classifier, which reads a mean. A test runs the networks and checks that there are no others."""
    layers = [layer.name for layer in found.layers if layer.macs]
    return layers[0], layers[-1]


def spike_fed_macs(found: Operations) -> int:
    """Returns the MACs of one time-step of all spike-fed layers."""
    return sum(layer.macs for layer in found.layers if layer.name not in real_layers(found))


def millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def billions(count: float) -> str:
    return f"{count / 1e9:.3f} G"


def sizes(data: str) -> str:
    """Returns the table of sizes of the networks for a data set."""
    task = TASKS[data]
    T = max(task.steps, default=4)
    head = (
        "network",
        "parameters",
        "neuron layers",
        "neurons per image and step",
        "MACs of one step",
        "of those, of spike-fed layers",
        f"SynOps per image at rate 1, T = {T}",
        "SynOps, trained",
    )
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name in names_of(data):
        found = size_of(name)
        spiking = spike_fed_macs(found)
        cells = (
            f"`{name}`",
            f"{found.parameters:,}",
            f"{found.neuron_layers}",
            millions(found.neurons),
            billions(found.macs),
            billions(spiking),
            billions(T * spiking),
            "unmeasured",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _setting(result: Result) -> str:
    parts = [result.connect_f, result.surrogate, f"T = {result.T}" if result.T else None]
    return ", ".join(part for part in parts if part)


def accuracies(task: Task) -> list[str]:
    """Returns the rows of published results: the best epoch, and the last epoch where it is known."""
    rows = []
    for name in names_of(task.data):
        for best in published(name, epoch="best"):
            setting = {key: getattr(best, key) for key in ("T", "connect_f", "surrogate")}
            last = published(name, epoch="last", **setting)
            value = f"{best.accuracy:.2f}" + (f" / {last[0].accuracy:.2f}" if last else "")
            rows.append(f"| {task.data} | `{name}` | {_setting(best)} | {value} | {best.source} |")
    return rows


def published_table() -> str:
    """Returns the table of all published results."""
    rows = ["| data | network | setting | top-1 accuracy / %, best (/ last epoch) | source |", "|---|---|---|---:|---|"]
    for task in TASKS.values():
        rows += accuracies(task)
    listed = len(rows) - 2 + sum(result.epoch == "last" for result in RESULTS)
    assert listed == len(RESULTS), "a published result is missing from the table"
    return "\n".join(rows)


def filled(page: str) -> str:
    """Returns the page with new tables."""
    tables = {data: lambda data=data: sizes(data) for data in TASKS} | {"published": published_table}
    return fill(page, tables, PAGE.name)


if __name__ == "__main__":
    main(PAGE, filled, COMMAND)
