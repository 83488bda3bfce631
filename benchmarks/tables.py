"""Puts the measured results into the README: every number there comes from benchmarks/results.

python benchmarks/tables.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "native": "**sewsnn**",
    "compile": "torch.compile of the loop",
    "loop": "loop over time-steps",
    "spikingjelly": "SpikingJelly {spikingjelly}",
}


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cpu_table() -> str:
    """The newest run that all rivals took part in, as Markdown."""
    rows = [r for r in read_rows(RESULTS / "cpu_neuron.jsonl") if "spikingjelly" in r and r["memory"] == "fresh"]
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
    return "\n".join([*lines, "", about])


def filled(readme: str) -> str:
    """The README with its table made anew."""
    start, end = "<!-- cpu_table -->\n", "\n<!-- end -->"
    head, _, rest = readme.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit("README.md lacks the marks the table goes between")
    return head + start + cpu_table() + end + tail


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
