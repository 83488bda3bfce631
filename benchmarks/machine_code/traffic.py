"""What a thread of each kernel loads and stores, and how often it waits for loads."""

from benchmarks.machine_code.model import Work

SIZES = {"half": 2, "bfloat16": 2, "float": 4, "double": 8}
AHEAD = 4  # kAhead of multistep.cuh: time-steps that are loaded together
#: bursts of loads per row that are requested while the thread works on the row before
HIDDEN: dict[str, float] = {}


def accesses(row: dict, T: int = 1) -> tuple[float, float]:
    """Returns the numbers that a kernel reads and writes per element and time-step, as tests/native/test_bytes.py
    counts them. (ADD's backward does not read the shortcut: its instances have no Shortcut. Batch norm with a neuron
    that is not common has instances with Shortcut alone, which without one move less than this.) The stem reads z once
    for all time-steps, and a quarter of its elements leave it. Reads that the cache serves do not count."""
    more = int(row.get("Shortcut", False))
    return {
        "forward_kernel": (1, 1),
        "backward_kernel": (2, 1),
        "bn_statistics_kernel": (1, 0),
        "bn_forward_kernel": (1 + more, 1),
        "bn_reduce_kernel": (2 + more, 0),
        "bn_apply_kernel": (2 + more, 1 + more),
        "pool_forward_kernel": (1 / T, 1 / 4),
        "pool_reduce_kernel": (1 / T + 1 / 4, 0),
        "pool_apply_kernel": (1 / T + 1 / 4, 1 / T),
    }[row["kernel"]]


def waits(row: dict, T: int) -> tuple[float, float]:
    """Returns how often a thread waits for loads in T time-steps, and how many packs it requests before the first wait.

    A kernel without chunks loads four time-steps at a time. A kernel with chunks of K loads a chunk of its inputs, and
    the last gradients of the chunk as far as its loads in flight (``ahead``, read from the SASS) reach. It loads the
    others four time-steps at a time. Loads of time-steps beyond T do not happen.

    The stem's kernels wait for the two columns of each of the two rows of z. Their gradients come from the cache, whose
    latency is not in the model.
    """
    if row["kernel"].startswith("pool_"):
        return 2, 2
    reads, _ = accesses(row)
    if "K" not in row:
        return -(-T // AHEAD), min(T, AHEAD) * reads
    K, inputs = row["K"], reads - 1
    early = min(K, max(0, row["ahead"] - inputs * K) // AHEAD * AHEAD)  # gradients that are requested with the inputs
    bursts = first = 0
    for start in range(0, T, K):
        steps = min(K, T - start)
        with_inputs = max(0, steps - (K - early))
        first = max(first, inputs * steps + with_inputs)
        bursts += 1 - (with_inputs - steps) // AHEAD
    return bursts, first


def work(row: dict, T: int, instructions: float, bursts: float | None = None, hidden: float | None = None) -> Work:
    """Returns the work of a thread of this kernel in T time-steps; of the stem's, for one row of windows.

    Given ``bursts`` and ``hidden`` replace those that this file knows.
    """
    reads, writes = accesses(row, T)
    pack = SIZES[row["Storage"]] * row["N"]
    waited, first = waits(row, T)
    return Work(
        instructions=instructions,
        moved=pack * T * (reads + writes) * (4 if row["kernel"].startswith("pool_") else 1),
        reads=reads / (reads + writes),
        bursts=waited if bursts is None else bursts,
        flying=pack * first,
        hidden=HIDDEN.get(row["kernel"], 0) if hidden is None else hidden,
    )
