"""Selects the row of each provider that counts, and checks whether the results meet the requirements."""

#: (description, column, required ratio to SpikingJelly)
LIMITS = (
    ("everything outside the convolutions", "other_ms", 4.0),
    ("the whole step", "p50_ms", 1.3),
    ("memory saved for backward", "saved_MiB", 2.0),
)


def mark_best(rows: list[dict]) -> None:
    """Sets ``best`` in the row of the faster memory format of each provider; all rows are of one case."""
    rows = [row for row in rows if "error" not in row]
    for row in rows:
        row["best"] = row["p50_ms"] == min(r["p50_ms"] for r in rows if r["provider"] == row["provider"])


def too_bad(rows: list[dict]) -> list[str]:
    """Returns a message for each result below :data:`LIMITS`. For SpikingJelly, the better memory format counts in each
    column."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        ratios = compared(rows, case, "spikingjelly")
        if ratios is None:
            found.append(f"{case}: fused and spikingjelly were not both measured")
            continue
        for what, column, limit in LIMITS:
            if ratios[column] < limit:
                found.append(
                    f"{case}: {what} is {ratios[column]:.2f}x better than SpikingJelly's, the limit is {limit:g}x"
                )
    return found


def compared(rows: list[dict], case: str, provider: str) -> dict[str, float] | None:
    """Returns how many times better fused is than the provider, by column; None if one of them was not measured."""
    measured = [row for row in rows if row["case"] == case and "error" not in row]
    ours = next((row for row in measured if row["provider"] == "fused" and row["best"]), None)
    theirs = [row for row in measured if row["provider"] == provider]
    if ours is None or not theirs:
        return None
    return {column: min(row[column] for row in theirs) / ours[column] for _, column, _ in LIMITS}
