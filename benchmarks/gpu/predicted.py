"""The predicted share of a copy's bandwidth beside the measured one (benchmarks/machine_code/model.py)."""

from functools import cache

from benchmarks.machine_code.hot import Predicted, predictions
from benchmarks.machine_code.model import device_of

#: measured case -> hot kernel. IF runs in instances of its own with fewer instructions; LIF's prediction serves it.
#: LIF with tau = 3 divides and PLIF's backward sums: no prediction.
CASES = {
    "IF_forward": "forward",
    "IF_inference": "forward",
    "IF_backward": "backward",
    "LIF_forward": "forward",
    "LIF_inference": "forward",
    "LIF_backward": "backward",
    "PLIF_forward": "forward",
    "PLIF_inference": "forward",
    "block_statistics": "bn statistics",
    "block_write": "bn forward, ADD",
    "block_reduce": "bn reduce",
    "block_apply": "bn apply",
}
STORAGES = {"float32": "float", "bfloat16": "bfloat16"}
LONGEST = 16  # time-steps of the longest chunk: kChunk of csrc/core/params.h


@cache
def known() -> dict[tuple[str, str, int], Predicted]:
    """Returns all predictions: (name of the kernel, storage, T) -> prediction. If there are none, it prints why and
    returns an empty dictionary, because a measurement must not fail for want of a prediction."""
    try:
        return {(p.hot.name, p.storage, p.T): p for p in predictions()}
    except SystemExit as reason:
        print(f"no predictions: {reason}", flush=True)
        return {}


def prediction_of(row: dict) -> Predicted | None:
    """Returns the prediction for a measured row, or None. More than 16 time-steps run as chunks of 16."""
    kernel = CASES.get(row.get("case"))
    if kernel is None or row.get("provider") != "native":
        return None
    T = 4 if kernel == "bn statistics" else min(row["T"], LONGEST)
    return known().get((kernel, STORAGES.get(row["dtype"]), T))


def predicted_share(row: dict, device: str) -> float | None:
    """Returns the predicted share of a copy's bandwidth; None if the device or the case has no prediction.

    Args:
        row: a measured row with ``case``, ``provider``, ``dtype`` and ``T``.
        device: the name of the GPU.
    """
    found, gpu = prediction_of(row), device_of(device)
    return None if found is None or gpu is None else round(found.limits.share(gpu), 3)


def comparison(rows: list[dict], device: str, csrc: str) -> str:
    """Returns a table of predicted and measured shares, the slowest kernel first: the newest row of each case of these
    sources on this device. Returns an empty text if nothing was measured."""
    newest = {}
    for row in rows:
        if "share_of_copy" in row and row["device"] == device and row["csrc"] == csrc:
            newest[row["case"], row["dtype"], row["place"]] = row
    if not newest:
        return ""
    lines = [("case", "dtype", "shape", "predicted", "measured", "limit")]
    for row in sorted(newest.values(), key=lambda r: r["share_of_copy"]):
        found, gpu, share = prediction_of(row), device_of(device), row.get("predicted_share")
        limit = "" if share is None or not found else found.limits.limit(gpu) + (f", old {found.old}" * bool(found.old))
        shown = "-" if share is None else f"{share:.0%}"
        lines.append((row["case"], row["dtype"], row["place"], shown, f"{row['share_of_copy']:.0%}", limit))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
