"""Which row of a provider counts, and whether the results are good enough."""

#: (what, column, how many times better than SpikingJelly's best it must be)
LIMITS = (
    ("everything outside the convolutions", "other_ms", 4.0),
    ("the whole step", "p50_ms", 1.3),
    ("memory saved for backward", "saved_MiB", 2.0),
)


def mark_best(rows: list[dict]) -> None:
    """``best`` says which memory format a provider is faster with; all rows are of one case."""
    rows = [row for row in rows if "error" not in row]
    for row in rows:
        row["best"] = row["p50_ms"] == min(r["p50_ms"] for r in rows if r["provider"] == row["provider"])


def too_bad(rows: list[dict]) -> list[str]:
    """Nothing, or what falls short of :data:`LIMITS`. Of SpikingJelly's settings the best counts, limit by limit."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        measured = [row for row in rows if row["case"] == case and "error" not in row]
        ours = next((row for row in measured if row["provider"] == "fused" and row["best"]), None)
        theirs = [row for row in measured if row["provider"].startswith("spikingjelly")]
        if ours is None or not theirs:
            found.append(f"{case}: fused and spikingjelly were not both measured")
            continue
        for what, column, limit in LIMITS:
            ratio = min(row[column] for row in theirs) / ours[column]
            if ratio < limit:
                found.append(f"{case}: {what} is {ratio:.2f}x better than SpikingJelly's, the limit is {limit:g}x")
    return found
