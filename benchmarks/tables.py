"""Puts the measured results into the README: every number there comes from benchmarks/results.

python -m benchmarks.tables
"""

from benchmarks.common import RESULTS, ROOT, csrc_hash, read_rows

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


def age(rows: list[dict], current: str) -> str:
    """Nothing, or that the sources are newer than these results."""
    sources = sorted({row["csrc"] for row in rows})
    if sources == [current]:
        return ""
    return f" **Older kernels than these** (sources {', '.join(sources)}): the numbers are out of date."


def cpu_table(rows: list[dict], current: str) -> str:
    """The newest run that all rivals took part in, as Markdown."""
    rows = [r for r in rows if "spikingjelly" in r and r["memory"] == "fresh"]
    rows = [r for r in rows if r["commit"] == rows[-1]["commit"]]
    times = sorted({r["T"] for r in rows})
    found = {(r["provider"], r["T"]): r["p50_ms"] for r in rows}
    lines = ["| | " + " | ".join(f"T = {T} | " for T in times) + "|", "|---|" + "---:|---:|" * len(times)]
    for provider in sorted({r["provider"] for r in rows}, key=lambda p: found[p, times[-1]]):
        cells = [NAMES[provider].format(**rows[-1])]
        for T in times:
            cells += [f"{found[provider, T]:.1f} ms", f"{found[provider, T] / found['native', T]:.1f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    about = "{device}, {isa}, {threads} threads, torch {torch}, {date}, commit {commit}.".format(**rows[-1])
    return "\n".join([*lines, "", about + age(rows, current)])


def overhead(rows: list[dict], current: str) -> str:
    """What a call costs, of the last run on a CPU."""
    found = {(r["case"], r["provider"]): r for r in rows if "driver" not in r}
    forward, both = (found[f"overhead_{c}", "sewsnn.functional.lif_multistep"] for c in ("forward", "forward_backward"))
    return (
        f"A call from Python (eight numbers, `python -m benchmarks.overhead`) costs {forward['least_us']:.0f} us "
        f"without gradients and {both['least_us']:.0f} us forward + backward: {both['device']}, torch {both['torch']}, "
        f"{both['date']}, commit {both['commit']}." + age([forward, both], current)
    )


def newest(rows: list[dict]) -> list[dict]:
    """Those of the device and the sources that were measured last; of each case the last."""
    rows = [r for r in rows if "case" in r and "error" not in r]
    found = {}
    for row in rows:
        if (row["device"], row["csrc"]) == (rows[-1]["device"], rows[-1]["csrc"]):
            found[row["case"], row["provider"], row.get("dtype"), row.get("place")] = row
    return list(found.values())


def bandwidth_table(rows: list[dict]) -> list[str]:
    """Share of a copy's bandwidth, the least of IF, LIF and PLIF, for each shape."""
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
    """Share of a copy's bandwidth of the passes of batch norm + IF + ADD, for each shape and dtype."""
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
    """Forward + backward beside native, for each shape."""
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


def gpu_table(rows: list[dict], current: str) -> str:
    """What a GPU has shown so far, as Markdown."""
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
    return "\n\n".join([*blocks, about + age(measured, current)])


def step_table(rows: list[dict], current: str) -> str:
    """Training steps: for each device, model and dtype the newest run, each provider in its better memory format."""
    runs = {}
    for row in (r for r in rows if "memory_format" in r):
        key = tuple(row[name] for name in ("device", "case", "dtype", "batch", "size", "T"))
        run = runs.setdefault(key, [])
        if run and run[0]["run"] != row["run"]:
            run.clear()
        run.append(row)
    if not runs:
        return "**Training steps are not yet measured.**"
    return "\n\n".join(_step_table([r for r in run if r.get("best")], current) for run in runs.values())


def _step_table(rows: list[dict], current: str) -> str:
    """One run."""
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
    return "\n".join([*lines, "", where + age(rows, current)])


def filled(readme: str, current: str | None = None) -> str:
    """The README with its tables made anew."""
    current = current or csrc_hash()
    tables = {
        "cpu_table": cpu_table(read_rows(RESULTS / "cpu_neuron.jsonl"), current),
        "step_table": step_table([*read_rows(RESULTS / "sew_step.jsonl"), *read_rows(RESULTS / "gpu.jsonl")], current),
        "overhead": overhead(read_rows(RESULTS / "overhead.jsonl"), current),
        "gpu_table": gpu_table(read_rows(RESULTS / "gpu.jsonl"), current),
    }
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        head, _, rest = readme.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"README.md lacks the marks of {name}")
        readme = head + start + table + end + tail
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
