"""The predictions as tables of docs/kernels.md and docs/gpu.md; benchmarks/tables.py writes them."""

from benchmarks.machine_code.counts import COMMAND as COUNT
from benchmarks.machine_code.hot import Predicted
from benchmarks.machine_code.model import DEVICES
from benchmarks.machine_code.rows import COMMAND

DTYPES = {"float": "float32", "bfloat16": "bfloat16"}


def remark(found: list[Predicted]) -> str:
    """Returns the line below a table: that it is a prediction, and whether it is of an older state of the kernels."""
    text = "*Predicted, not measured.*"
    if parts := sorted({p.old for p in found if p.old}):
        text += f" *Old: the code has changed since ({'; '.join(parts)}): `{COMMAND}`, `{COUNT}`.*"
    return text


def details(found: list[Predicted]) -> str:
    """Returns the table of docs/kernels.md: float32 with four time-steps, bfloat16 with all."""
    head = ["predicted", "T", "instance", "instructions", "stall", "blocks", "bursts", "KB in flight / needed"]
    head += ["issue limit TB/s", "latency limit TB/s", *(f"{name}, of a copy" for name in DEVICES)]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|" + "---:|" * (len(head) - 3)]
    for p in found:
        if p.storage == "float" and p.T != 4:
            continue
        instance = ", ".join(f"{n} = {p.code[n]}" for n in ("K", "N") if n in p.code)
        line = [f"{p.hot.name}, {DTYPES[p.storage]}", str(p.T), instance, f"{p.work.instructions:.0f}"]
        line += [f"{p.code['stall']:.1f}", str(p.code["blocks"]), f"{p.work.bursts:g}"]
        line.append(f"{p.limits.flying / 1024:.0f} / {p.limits.needed(DEVICES['H100']) / 1024:.1f}")
        line += [f"{p.limits.issue / 1e12:.1f}", f"{p.limits.latency / 1e12:.1f}"]
        line += [f"{p.limits.share(device):.0%} {p.limits.limit(device)}" for device in DEVICES.values()]
        lines.append("| " + " | ".join(line) + (" (old)" if p.old else "") + " |")
    return "\n".join([*lines, "", remark(found)])


def shares(found: list[Predicted]) -> str:
    """Returns the table of docs/gpu.md: the predicted shares alone."""
    columns = list(dict.fromkeys((p.storage, p.T) for p in found))
    columns.sort(key=lambda c: (list(DTYPES).index(c[0]), c[1]))
    by_kernel: dict[str, dict] = {}
    for p in found:
        by_kernel.setdefault(p.hot.name, {})[p.storage, p.T] = p
    heads = [f"{DTYPES[storage]}, T = {T}" for storage, T in columns]
    lines = [f"| predicted, {' / '.join(DEVICES)} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in by_kernel.items():
        found_here = [row.get(column) for column in columns]
        line = [" / ".join(f"{p.limits.share(d):.0%}" for d in DEVICES.values()) if p else "" for p in found_here]
        lines.append(f"| {name} | " + " | ".join(line) + " |")
    return "\n".join([*lines, "", remark(found)])
