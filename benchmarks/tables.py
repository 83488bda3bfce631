"""Writes the tables of results in README.md and docs from the rows in benchmarks/results: measured results, and the
predicted speed of the CUDA kernels in docs/kernels.md and docs/gpu.md.

python -m benchmarks.tables
"""

from benchmarks.common import RESULTS, ROOT, read_rows
from benchmarks.dating import is_current
from benchmarks.machine_code.hot import predictions
from benchmarks.machine_code.pages import details, shares
from benchmarks.overhead import BLOCK, MODULES
from docs.marks import fill

NAMES = {
    "native": "**sewsnn**",
    "compile": "torch.compile of the loop",
    "loop": "loop over time-steps",
    "modules": "BatchNorm2d, sewsnn's neuron, add",
    "spikingjelly": "SpikingJelly {spikingjelly}",
    "spikingjelly_cupy": "SpikingJelly {spikingjelly}, cupy",
}
STEP_NAMES = NAMES | {
    "fused": "**sewsnn**",
    "unfused": "sewsnn, batch norm by torch",
    "plain": "loop over time-steps",
    "packed": "sewsnn, packed spikes",
    "spikingjelly_once": "SpikingJelly {spikingjelly}, changed: stem once per image",
    "converted": "SpikingJelly {spikingjelly} after `from_spikingjelly(net)`",
}
COMMAND = "python -m benchmarks.tables"


OLD = " *Measured before the last change of this code.*"
#: the columns of the README's table: heading, provider in rows of cpu_neuron, provider in rows of sew_step
RIVALS = (
    ("sewsnn", "native", "fused"),
    ("torch.compile", "compile", "compile"),
    ("PyTorch loop", "loop", "plain"),
    ("SpikingJelly {spikingjelly}", "spikingjelly", "spikingjelly"),
)


def age(rows: list[dict]) -> str:
    """Returns a remark if the code has changed since these rows were measured, else an empty text."""
    return "" if all(map(is_current, rows)) else OLD


def newest_run(rows: list[dict], key: str) -> list[dict]:
    """Returns the rows of the newest run: all rows with the same value of ``key`` as the last one."""
    return [row for row in rows if row.get(key) == rows[-1].get(key)]


def newest_neurons(rows: list[dict]) -> list[dict]:
    """Returns the newest run of benchmarks.cpu_neuron with all rivals."""
    rows = [r for r in rows if "spikingjelly" in r and r["memory"] == "fresh"]
    return newest_run(rows, "run" if rows and "run" in rows[-1] else "commit")


def gain_table(neurons: list[dict], steps: list[dict]) -> str:
    """Returns the README's table: neurons alone and a whole training step on a CPU, beside the rivals."""
    neurons = newest_neurons(neurons)
    steps = [r for r in steps if r.get("case") == "sew_resnet18" and "isa" in r and r.get("best")]
    steps = newest_run(steps, "run")
    lines = []
    for T in sorted({r["T"] for r in neurons}):
        size = f"{neurons[0]['neurons'] / 1e6:.0f} million LIF neurons, T = {T}"
        lines.append((size, {r["provider"]: r["p50_ms"] for r in neurons if r["T"] == T}, 1, "ms"))
    by_name = {r["provider"]: r for r in steps}
    about = next(iter(steps), None)
    if about:
        title = "SEW-ResNet-18 training step, {batch} images {size} x {size}, T = {T}".format(**about)
        lines.append((title, {p: r["p50_ms"] for p, r in by_name.items()}, 2, "ms"))
        lines.append(
            ("memory that this step keeps for backward", {p: r["saved_MiB"] for p, r in by_name.items()}, 2, "MiB")
        )
    versions = next((r for r in [*neurons, *steps] if "spikingjelly" in r), {"spikingjelly": ""})
    head = "| forward + backward, float32, CPU | " + " | ".join(r[0].format(**versions) for r in RIVALS) + " |"
    table = [head, "|---|" + "---:|" * len(RIVALS)]
    for what, found, name, unit in lines:
        cells, ours = [], found[RIVALS[0][name]]
        for rival in RIVALS:
            value = found.get(rival[name])
            if value is None:
                cells.append("unmeasured")
                continue
            text = f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            cells.append(f"**{text}**" if rival is RIVALS[0] else f"{text} ({value / ours:.1f}x)")
        table.append(f"| {what} | " + " | ".join(cells) + " |")
    measured = [
        "{device}, {threads} threads, torch {torch}, {date}.".format(**rows[-1]) for rows in (neurons, steps) if rows
    ]
    machines = dict.fromkeys(measured)
    where = next(iter(machines)) if len(machines) == 1 else "Neurons: {} Training step: {}".format(*machines)
    return "\n".join([*table, "", where + age([*neurons, *steps])])


def cpu_table(rows: list[dict]) -> str:
    """Returns the table of neurons alone."""
    rows = newest_neurons(rows)
    times = sorted({r["T"] for r in rows})
    found = {(r["provider"], r["T"]): r["p50_ms"] for r in rows}
    lines = ["| | " + " | ".join(f"T = {T} | " for T in times) + "|", "|---|" + "---:|---:|" * len(times)]
    for provider in sorted({r["provider"] for r in rows}, key=lambda p: found[p, times[-1]]):
        cells = [NAMES[provider].format(**rows[-1])]
        for T in times:
            cells += [f"{found[provider, T]:.1f} ms", f"{found[provider, T] / found['native', T]:.1f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    about = "{device}, {isa}, {threads} threads, torch {torch}, {date}, commit {commit}.".format(**rows[-1])
    return "\n".join([*lines, "", about + age(rows)])


def overhead(rows: list[dict]) -> str:
    """Returns two sentences with the overhead of a call and of a block, from the last run on a CPU."""
    found = {(r["case"], r["provider"]): r for r in rows if "driver" not in r}
    block, modules = (found["overhead_forward_backward", provider] for provider in (BLOCK, MODULES))
    forward, both = (found[f"overhead_{c}", "sewsnn.functional.lif_multistep"] for c in ("forward", "forward_backward"))
    return (
        f"A call from Python (eight numbers, `python -m benchmarks.overhead`) costs {forward['least_us']:.0f} us "
        f"without gradients and {both['least_us']:.0f} us forward + backward. Batch norm + neuron + ADD as one block "
        f"costs {block['least_us']:.0f} us forward + backward; torch's BatchNorm2d, relu and add cost "
        f"{modules['least_us']:.0f} us in the same run ({block['least_us'] / modules['least_us']:.2f} times). "
        f"{both['device']}, torch {both['torch']}, {both['date']}, commit {both['commit']}."
        + age([forward, both, block])
    )


def newest(rows: list[dict]) -> list[dict]:
    """Returns the last row of each case on the device that was measured last: rows of the present code if there are
    any, else old rows."""
    rows = [r for r in rows if "case" in r and "error" not in r]
    found = {}
    for row in rows:
        if row["device"] == rows[-1]["device"] and is_current(row) == is_current(rows[-1]):
            found[row["case"], row["provider"], row.get("dtype"), row.get("place")] = row
    return list(found.values())


def bandwidth_table(rows: list[dict]) -> list[str]:
    """Returns the share of a copy's bandwidth for each shape, the smallest of IF, LIF and PLIF."""
    shares = {}
    for row in rows:
        if "share_of_copy" in row and not row["case"].startswith("block_"):
            column = row["dtype"], row["case"].split("_")[-1]
            shares.setdefault((row["place"], tuple(row["shape"])), {}).setdefault(column, []).append(row)
    if not shares:
        return []
    columns = [(dtype, what) for dtype in ("float32", "bfloat16") for what in ("forward", "backward")]
    lines = [
        "| share of a copy's bandwidth | " + " | ".join(" ".join(c) for c in columns) + " |",
        "|---|---:|---:|---:|---:|",
    ]
    for (place, shape), found in shares.items():
        cells = [f"{place} {list(shape)}"]
        for column in columns:
            least = min(found.get(column, []), key=lambda r: r["share_of_copy"], default=None)
            cells.append(f"{least['share_of_copy']:.0%} ({least['GB_per_s']:.0f} GB/s)" if least else "unmeasured")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def passes_table(rows: list[dict]) -> list[str]:
    """Returns the share of a copy's bandwidth for each pass of batch norm + IF + ADD, for each shape and dtype."""
    passes = ("statistics", "write", "reduce", "apply")
    found = {}
    for row in rows:
        if row["case"].removeprefix("block_") in passes:
            found.setdefault((row["place"], row["dtype"]), {})[row["case"].removeprefix("block_")] = row
    if not found:
        return []
    lines = ["| BN + IF + ADD, share of a copy's bandwidth | " + " | ".join(passes) + " |", "|---|" + "---:|" * 4]
    for (place, dtype), by_pass in found.items():
        cells = [f"{by_pass[p]['share_of_copy']:.0%}" if p in by_pass else "unmeasured" for p in passes]
        lines.append(f"| {place} {dtype} | " + " | ".join(cells) + " |")
    return lines


def rivals_table(rows: list[dict], case: str, title: str) -> list[str]:
    """Returns the times of forward + backward of the rivals beside native, for each shape."""
    found = {}
    for row in rows:
        if row["case"] == case:
            found.setdefault((row["place"], row["dtype"]), {})[row["provider"]] = row
    found = {key: providers for key, providers in found.items() if "native" in providers}
    if not found:
        return []
    names = [n for n in NAMES if any(n in providers for providers in found.values())]
    about = next((r for r in rows if "spikingjelly" in r), {"spikingjelly": ""})
    head = [NAMES[n].format(**about) for n in names]
    lines = [f"| {title}, forward + backward | " + " | ".join(head) + " |", "|---|" + "---:|" * len(names)]
    for (place, dtype), providers in found.items():
        ours = providers["native"]["p50_ms"]
        cells = [
            f"{providers[n]['p50_ms']:.3f} ms ({providers[n]['p50_ms'] / ours:.1f}x)"
            if n in providers
            else "unmeasured"
            for n in names
        ]
        lines.append(f"| {place} {dtype} | " + " | ".join(cells) + " |")
    return lines


def gpu_table(rows: list[dict]) -> str:
    """Returns the section of results on a GPU, or the statement that there are none."""
    measured = newest(rows)
    if not measured:
        return "**Not yet measured on a GPU**: speed and results there are unknown."
    about = "{device}, driver {driver}, CUDA {cuda}, torch {torch}, {date}, commit {commit}.".format(**measured[-1])
    tables = [
        bandwidth_table(measured),
        rivals_table(measured, "LIF_forward_backward", "LIF"),
        passes_table(measured),
        rivals_table(measured, "block_forward_backward", "BN + IF + ADD"),
    ]
    blocks = ["\n".join(table) for table in tables if table]
    return "\n\n".join([*blocks, about + age(measured)])


def gpu_line(rows: list[dict]) -> str:
    """Returns a sentence for the README that says whether a GPU has been measured."""
    measured = newest(rows)
    if not measured:
        return (
            "**No GPU has run these kernels yet.** nvcc compiles them, and the tests run every CUDA kernel on the CPU, "
            "thread by thread; speed and results on a GPU are unknown."
        )
    text = "Measured on {device}, {date}: [tables](docs/performance.md#on-a-gpu).".format(**measured[-1])
    return text + age(measured)


def step_table(rows: list[dict]) -> str:
    """Returns the tables of training steps: for the CPU that was measured last and for each GPU, the newest run of each
    model and dtype, with each provider in its faster memory format."""
    runs = {}
    for row in (r for r in rows if "memory_format" in r):
        key = (row["device"] if "driver" in row else "CPU", *(row[n] for n in ("case", "dtype", "batch", "size", "T")))
        run = runs.setdefault(key, [])
        if run and run[0]["run"] != row["run"]:
            run.clear()
        run.append(row)
    if not runs:
        return "**Training steps are not yet measured.**"
    return "\n\n".join(_step_table([r for r in run if r.get("best")]) for run in runs.values())


def _step_table(rows: list[dict]) -> str:
    """Returns the table of one run."""
    about = next((r for r in rows if "spikingjelly" in r), rows[-1])
    ours = next((r for r in rows if r["provider"] == "fused"), None)
    columns = ("p50_ms", "other_ms", "saved_MiB", "peak_MiB")
    lines = [
        "| {case}, {dtype}, batch {batch}, {size} x {size}, T = {T} | memory format ".format(**about)
        + "| step | | outside the convolutions | | saved for backward | | peak |  |",
        "|---|---|" + "---:|---:|" * len(columns),
    ]
    for row in sorted(rows, key=lambda r: r["p50_ms"]):
        cells = [STEP_NAMES[row["provider"]].format(**about), row["memory_format"]]
        for name in columns:
            unit = "ms" if name.endswith("ms") else "MiB"
            known = row[name] is not None
            cells.append(f"{row[name]:.0f} {unit}" if known else "unmeasured")
            cells.append(f"{row[name] / ours[name]:.2f}x" if known and ours and ours[name] else "")
        lines.append("| " + " | ".join(cells) + " |")
    where = "{isa}, {threads} threads" if "threads" in about else "driver {driver}, CUDA {cuda}"
    where = ("{device}, " + where + ", torch {torch}, {date}, commit {commit}.").format(**about)
    return "\n".join([*lines, "", where + age(rows)])


def tables() -> dict[str, dict[str, str]]:
    """Returns all tables: page -> name of a table in it -> its text."""
    neurons, steps = read_rows(RESULTS / "cpu_neuron.jsonl"), read_rows(RESULTS / "sew_step.jsonl")
    gpu, predicted = read_rows(RESULTS / "gpu.jsonl"), predictions()
    return {
        "docs/kernels.md": {"predicted": details(predicted)},
        "docs/gpu.md": {"predicted_shares": shares(predicted)},
        "README.md": {"gain": gain_table(neurons, steps), "gpu": gpu_line(gpu)},
        "docs/performance.md": {
            "cpu_table": cpu_table(neurons),
            "step_table": step_table([*steps, *gpu]),
            "overhead": overhead(read_rows(RESULTS / "overhead.jsonl")),
            "gpu_table": gpu_table(gpu),
        },
    }


def filled(page: str, text: str) -> str:
    """Returns the text of a page with new tables."""
    return fill(text, {name: lambda table=table: table for name, table in tables()[page].items()}, page)


if __name__ == "__main__":
    for page in tables():
        path = ROOT / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")
