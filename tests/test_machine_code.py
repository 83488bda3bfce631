"""The machine code of the kernels: no local memory, whole packs per access, no contraction."""

import re
from collections import Counter

import pytest
from thorough import THOROUGH

from benchmarks import machine_code
from benchmarks.common import ROOT, read_rows
from sewsnn.ops import load

SIZE = {"half": 2, "bfloat16": 2, "float": 4, "double": 8}
ALL = THOROUGH and machine_code.find_nvcc() is not None  # architectures
AHEAD = 4  # kAhead of multistep.cuh


@pytest.fixture(scope="module")
def rows():
    """The kernels of the compiled library; with SEWSNN_THOROUGH=1 those of sm_80, sm_90 and the newest architecture."""
    if ALL:
        return machine_code.measure(machine_code.default_archs(machine_code.find_nvcc()))
    if "cuda" not in load.NATIVE_DEVICES:
        pytest.skip("the compiled library has no CUDA kernels (it was built without nvcc)")
    found = machine_code.measure()
    assert found
    return found


@pytest.fixture(scope="module")
def committed():
    return read_rows(machine_code.RESULTS)


def none_of(rows, wrong):
    """Fails with a list of all wrong kernels and the reasons, if there are any."""
    found = [f"sm_{row['arch']} {machine_code.title(row)}: {what}" for row in rows if (what := wrong(row))]
    if found:
        pytest.fail(f"{len(found)} of {len(rows)}:\n" + "\n".join(found), pytrace=False)


def titles(rows):
    """The kernels of each architecture."""
    found = {}
    for row in rows:
        found.setdefault(row["arch"], []).append(machine_code.title(row))
    return found


def second_stage(state, scalars, single):
    """Adds the single accesses of the second stage (bn_finish.cuh): eight partial sums and eight sums of chunks at a
    time, and one sum of a chunk that is stored."""
    scalars[state] += 8
    scalars[8] += 8
    single[8] += 1


def structs():
    """What each struct of csrc/neurons has: states, learnt numbers that are the same for all neurons, others; and the
    names of those that divide on the device."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc" / "neurons").glob("*.h")))
    found, dividing = {}, set()
    for name, body in re.findall(r"^struct (\w+)[^;{]*\{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        states, learnt = (re.search(rf"\b{number} = (\d)", body) for number in ("kStates", "kLearnt"))
        learnt = int(learnt[1]) if learnt else 0
        own = learnt if re.search(r"\bkPerChannel = true", body) else 0
        found[name] = int(states[1]) if states else 1, learnt - own, own
        if re.search(r" / (?!p\.)", body):  # by p.tau, for example, the host divides
            dividing.add(name)
    return found, dividing


STRUCTS, DIVIDING = structs()


def numbers_of(row):
    """The states and the learnt numbers of the neuron of a row. Kernels that do not name it have PLIF."""
    return STRUCTS[row.get("Neuron", "LeakyMultiply")]


def test_structs_are_read_from_their_headers():
    assert STRUCTS["LeakyDivide"] == (1, 0, 0) and STRUCTS["LeakyMultiply"] == (1, 1, 0)
    assert "LeakyDivide" in DIVIDING and DIVIDING.isdisjoint({"LeakyMultiply", "IntegrateFire", "CurrentBased"})
    assert STRUCTS["AdaptiveLeaky"] == (2, 0, 0) and STRUCTS["LearntLeaky"] == (1, 0, 2)


def required(row):
    """Returns how often the code of a wide kernel loads packs, loads single numbers, stores packs and stores single
    numbers, each as {bytes of an access: count}."""
    storage, state = SIZE[row["Storage"]], max(4, SIZE[row["Storage"]])
    loads, scalars, stores, single = Counter(), Counter(), Counter(), Counter()
    pack, state_pack = storage * row["N"], state * row["N"]
    states, shared, own = numbers_of(row)
    if row["kernel"] == "bn_statistics_kernel":
        loads[pack] += AHEAD  # z
        scalars[storage] += 2  # the first value of a channel, once more for the mean
        single[state] += 1  # a partial sum
        second_stage(state, scalars, single)
        # mean and variance, and the running ones: loops that the compiler unrolls
        scalars[state] += 7 * AHEAD
        single[state] += 4 + 2 * AHEAD
        scalars[8] += 1  # the number of calls
        single[8] += 1
        return loads, scalars, stores, single
    if row["kernel"].startswith(("max_pool_", "bn_pooled_")):
        return required_of_pooling(row)
    if row["kernel"] == "bn_forward_kernel":
        loads[pack] += AHEAD * (1 + row["Shortcut"])
        scalars[state] += 4 + shared + own  # mean, var, weight, bias, learnt numbers
        stores[pack] += AHEAD  # out
        stores[state_pack] += 2 * states  # checkpoint, the last v
        single[1] += AHEAD * (row["N"] >= 4)  # packed spikes
        return loads, scalars, stores, single
    if row["kernel"] in ("bn_reduce_kernel", "bn_apply_kernel"):
        reduce = row["kernel"] == "bn_reduce_kernel"
        loads[pack] += row["K"] * (2 + row["Shortcut"] + reduce)  # z, grad_out, grad_skip
        scalars[state] += 4 + shared + own + 2 * (not reduce)  # the sums, too
        if not reduce:
            loads[pack] += 1  # z once more, if still
        if row["K"] > 2 * AHEAD:
            loads[state_pack] += states  # checkpoint
        stores[pack] += row["K"] * (1 + (row["Shortcut"] and not reduce))  # grad_sum; grad_z and grad_shortcut
        if reduce:
            single[8] += shared  # a partial sum of PLIF's gradient
            scalars[state] += 1  # the variance once more
            for _ in range(1 + (own > 0)):  # the sums of the norm; those of the learnt numbers
                single[state] += 2  # a partial sum, a sum
                second_stage(state, scalars, single)
        return loads, scalars, stores, single
    if row["kernel"] == "forward_kernel":
        loads[pack] += AHEAD  # x
        loads[state_pack] += states  # v0
        stores[pack] += AHEAD  # s
        stores[state_pack] += (AHEAD + 2) * states  # v_seq, checkpoint, the last v
        scalars[state] += own * row["N"]
    elif row["kernel"] == "backward_kernel":
        loads[pack] += 2 * row["K"]  # x, grad_s
        loads[state_pack] += (row["K"] + 2) * states  # grad_v of v_seq; the states before the chunk, grad_v of the last
        stores[pack] += row["K"]  # grad_x
        stores[state_pack] += states  # grad_v0
        stores[state_pack] += row["Leak"] * own  # the learnt numbers' gradients of each neuron
        scalars[state] += own * row["N"]
        single[8] += row["Leak"] * (shared + own)  # partial sums
    elif row["kernel"] == "pool_forward_kernel":
        loads[storage * row["N"]] += 4  # two columns of z, ahead of the first row and in the loop
        stores[storage * row["N"]] += row["K"]  # out
    else:
        loads[storage * row["N"]] += 3 + 4 * row["K"]  # z for the spikes, for the gradient; grad_out of four windows
        stores[storage * row["N"]] += row["kernel"] == "pool_apply_kernel"  # grad_z
        single[8] += 2 * (row["kernel"] == "pool_reduce_kernel")  # partial sums, also of the leak
    scalars[state] += shared  # PLIF's leak
    if row["kernel"].startswith("pool_"):
        scalars[state] += 4 + 2 * (row["kernel"] == "pool_apply_kernel")  # of the norm, and its two sums
    return +loads, +scalars, +stores, +single


def required_of_pooling(row):
    """:func:`required` of the kernels of max pooling, whose positions are bytes, N of which are a pack."""
    storage, state, N = SIZE[row["Storage"]], max(4, SIZE[row["Storage"]]), row["N"]
    loads, scalars, stores, single = Counter(), Counter(), Counter(), Counter()
    pack, kernel = storage * N, row["kernel"]
    size = {"Window3x3": 3, "Window2x2": 2}.get(row.get("Window"))
    if kernel == "max_pool_backward_kernel":
        windows = {3: 4, 2: 1}[size]  # in which a number lies at most
        loads[pack] += windows + 1  # gradients, x
        loads[N] += windows
        scalars[state] += 3 * N  # of the channels
        stores[pack] += 1
    elif kernel.startswith("max_pool_"):
        loads[pack] += size * size
        stores[pack] += 1
        stores[N] += 1
        scalars[state] += N  # the weight
        if kernel == "max_pool_statistics_kernel":  # the rest is that of bn_statistics_kernel, with all its loops
            scalars[storage] += 2
            single[state] += 1 + 4 + 2 * AHEAD
            scalars[state] += 2 * 7 * AHEAD
            scalars[8] += 1
            single[8] += 1
            second_stage(state, scalars, single)
    elif kernel == "bn_pooled_forward_kernel":
        loads[pack] += AHEAD * (1 + row["Shortcut"])
        scalars[state] += 4 * N + 1  # of the channels; PLIF's leak
        stores[pack] += 1
        stores[N] += 1
    else:
        reduce = kernel == "bn_pooled_reduce_kernel"
        loads[pack] += row["K"] * 2 + (not reduce)  # z and the gradient; z once more, if still
        loads[N] += row["K"]
        scalars[storage] += row["K"] * N  # contiguous images: gradients and positions one by one
        scalars[1] += row["K"] * N
        scalars[state] += 4 + 1 + (1 if reduce else 2)
        if row["K"] > 2 * AHEAD:
            loads[state * N] += 1  # checkpoint
        stores[pack] += row["K"] * (1 if reduce else 2)
        if reduce:
            single[8] += 1
            single[state] += 2
            second_stage(state, scalars, single)
    return +loads, +scalars, +stores, +single


def moved(counts):
    """Returns the bytes that {bits: count} moves, by size of an access; an access of 256 bits counts as two of 128."""
    found = Counter()
    for bits, times in counts.items():
        found[min(int(bits) // 8, 16)] += int(bits) // 8 * times
    return found


def too_narrow(counts, packs, scalars):
    """Returns what is wrong with the accesses {bits: count}: too few whole packs, or too many narrower accesses.

    If the compiler has repeated the accesses of packs, it may also have repeated those of single numbers.
    """
    found, needed = moved(counts), moved({8 * size: times for size, times in packs.items()})
    copies = max([1, *(-(-found[width] // needed[width]) for width in needed)])
    wrong = [f"{found[w]} bytes by {8 * w} bits, {needed[w]} needed" for w in needed if found[w] < needed[w]]
    most = {width: scalars.get(width, 0) * copies for width in found.keys() - needed.keys()}
    wrong += [f"{found[w] // w} of {8 * w} bits, at most {most[w]} needed" for w in most if found[w] > w * most[w]]
    return wrong


def together(*counts):
    total = Counter()
    for one in counts:
        total.update(one)
    return total


def test_every_kernel_on_every_architecture(rows):
    found = titles(rows)
    if ALL:
        assert {80, 90} <= found.keys() and len(found) == 3
    some = next(iter(found))
    for arch, kernels in found.items():
        assert len(kernels) == len(set(kernels)), arch
        assert kernels == found[some], arch
    kinds = Counter(row["kernel"] for row in rows if row["arch"] == some)
    assert kinds == {
        "forward_kernel": 24 + 40,  # of common neurons, and of the others
        "backward_kernel": 60 + 60,
        "sum_partials_kernel": 2,
        "sum_rows_kernel": 2,
        "channel_sums_kernel": 2,
        "bn_statistics_kernel": 7,
        "bn_update_kernel": 2,
        "bn_forward_kernel": 14 + 35,
        "bn_bits_kernel": 4,
        "bn_unpack_kernel": 4,
        "bn_reduce_kernel": 32 + 35,
        "bn_apply_kernel": 32 + 35,
        **dict.fromkeys(("pool_forward_kernel", "pool_reduce_kernel", "pool_apply_kernel"), 13),
        "pool_sums_kernel": 2,
        "max_pool_kernel": 18,
        "max_pool_backward_kernel": 18,
        "max_pool_statistics_kernel": 14,
        "bn_pooled_forward_kernel": 24,
        "bn_pooled_reduce_kernel": 9,
        "bn_pooled_apply_kernel": 9,
    }
    assert sum(row.get("N", 1) > 1 for row in rows if row["arch"] == some) == 75 + 26 + 18 + 83 + 42


def test_nothing_in_local_memory(rows):
    """Doubles are excepted, because nobody trains in them: their divisions are calls, which need many registers."""

    def wrong(row):
        if row["Storage"] == "double" and "K" in row and row["kernel"].startswith("bn_") and row["stack"] <= 96:
            return {}
        return {name: row[name] for name in ("stack", "LDL", "STL") if row[name]}

    none_of(rows, wrong)


def test_accesses_are_to_global_memory(rows):
    """No generic accesses (LD, ST): they must first find the kind of memory."""
    none_of(rows, lambda row: {name: row[name] for name in ("LD", "ST") if row[name]})


def test_wide_loads(rows):
    def wrong(row):
        packs, scalars, _, _ = required(row)
        return too_narrow(together(row["LDG"], row["LD"]), packs, scalars)

    none_of([row for row in rows if row.get("N", 1) > 1], wrong)


def test_wide_stores(rows):
    def wrong(row):
        _, _, packs, scalars = required(row)
        return too_narrow(together(row["STG"], row["ST"]), packs, scalars)

    none_of([row for row in rows if row.get("N", 1) > 1], wrong)


def test_loads_are_issued_together(rows):
    """These loads are in flight together:

    - forward: AHEAD time-steps of x; backward: a chunk of x and of grad_s;
    - stem: both columns of z, and the gradients of a window in all time-steps;
    - with batch norm: a chunk of z, of the shortcut and of the gradient; of z alone where the output is pooled;
    - max pooling: the numbers of a window, and the gradients of all windows that a number lies in.

    On architectures after sm_90 two thirds suffice: the compiler converts the first half numbers there before it issues
    the last loads. Doubles are left out, because nobody trains in them.
    """

    def wrong(row):
        chunk = row.get("K", AHEAD)
        if row["kernel"].startswith("max_pool_"):
            needed = {"Window3x3": 9, "Window2x2": 4}[row["Window"]]
            if row["kernel"] == "max_pool_backward_kernel":
                needed = {9: 8, 4: 2}[needed]
        elif row["kernel"] == "bn_pooled_forward_kernel":
            needed = AHEAD * (1 + row["Shortcut"])
        elif row["kernel"].startswith("bn_pooled_"):
            needed = chunk
        elif row["kernel"].startswith("bn_"):
            needed = chunk * (1 + row.get("Shortcut", 0) + ("K" in row))
        elif row["kernel"].startswith("pool_"):
            needed = 2 if row["kernel"] == "pool_forward_kernel" else chunk
        else:
            needed = 2 * chunk if "K" in row else chunk
        if row["arch"] > 90:
            needed = needed * 2 // 3
        return f"{row['ahead']} under way, {needed} wanted" if row["ahead"] < needed else None

    none_of([row for row in rows if row.get("N", 1) > 1 and row["Storage"] != "double"], wrong)


def test_no_contraction(rows):
    """Kernels without division and exponential have no fused multiply-add."""
    plain = [r for r in rows if r["kernel"] == "forward_kernel" and r["Neuron"] not in DIVIDING]
    plain += [r for r in rows if r["kernel"] == "bn_update_kernel"]  # statistics divide in double
    assert len({r["kernel"] for r in plain}) == 2
    none_of(plain, lambda row: {name: row[name] for name in ("FFMA", "DFMA") if row[name]})


def test_occupancy(rows):
    """The registers allow at least this number of threads per multiprocessor:

    - neuron: forward 1024; backward 512 with short chunks (384 for PLIF's gradient in half precision), 256 with longer
      ones (384 in half precision without PLIF's gradient);
    - with batch norm: statistics 1024 (all its blocks run at once), forward 512; backward 512 with K = 4 (float:
      384), 384 with K = 8 and 256 with K = 16. Reduce with a shortcut: 128 fewer up to 256.
    - with a pooled output: forward 512; reduce 256, apply 256, and 128 more with K = 4;
    - max pooling: 768, with statistics 512;
    - stem: forward 896, backward 512 and 384 (apply in bfloat16 always 384); for doubles 768 and 256.
    """

    def wrong(row):
        if row["kernel"] == "bn_forward_kernel":
            needed = 4
        elif row["kernel"] in ("bn_reduce_kernel", "bn_apply_kernel"):
            half, shortcut = SIZE[row["Storage"]] == 2, row["Shortcut"] and row["kernel"] == "bn_reduce_kernel"
            needed = max(2, {4: 3 + half, 8: 3, 16: 2}[row["K"]] - shortcut)
        elif row["kernel"] == "bn_statistics_kernel":
            needed = 5 if row["Storage"] == "double" else 8
        elif row["kernel"] in ("bn_pooled_forward_kernel", "max_pool_statistics_kernel"):
            needed = 4
        elif row["kernel"].startswith("bn_pooled_"):
            needed = 3 if row["K"] == 4 else 2
        elif row["kernel"].startswith("max_pool_"):
            needed = 6
        elif row["kernel"] == "pool_forward_kernel":
            needed = 6 if row["Storage"] == "double" else 7
        elif row["kernel"] in ("pool_reduce_kernel", "pool_apply_kernel"):
            wide_apply = (row["kernel"], row["Storage"], row["N"] > 1) == ("pool_apply_kernel", "bfloat16", True)
            needed = 2 if row["Storage"] == "double" else 3 if row["N"] * row["K"] > 16 or wide_apply else 4
        elif row["kernel"] != "backward_kernel":
            needed = 8
        else:
            half = SIZE[row["Storage"]] == 2
            needed = 2 + (half and not row["Leak"]) if row["K"] > AHEAD else 4 - (row["Leak"] and row["N"] == 8)
        return f"{row['blocks']} blocks of 128 threads, {needed} wanted" if row["blocks"] < needed else None

    none_of(rows, wrong)


def test_options_are_the_library_s():
    """The options are those of cmake/cuda.cmake and a Release build."""
    assert "-DCMAKE_BUILD_TYPE=Release" in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert machine_code.options() == ["-O3", "-DNDEBUG", "-std=c++17", "--fmad=false"]


def test_results_are_of_this_source(committed):
    old = {row["kernel"] for row in committed if row["sources"] != machine_code.sources_of(row)}
    assert not old, f"the code of {', '.join(sorted(old))} has changed since: {machine_code.COMMAND}"


def test_results_are_reproduced(rows, committed):
    """With the same nvcc all rows are equal; with another nvcc the kernels are the same."""
    again = f"other kernels or numbers now: {machine_code.COMMAND}"
    known, now = titles(committed), titles(rows)
    assert set(known[90]) == set(next(iter(now.values()))), again
    if {row["nvcc"] for row in committed} == {row["nvcc"] for row in rows}:
        assert [row for row in committed if row["arch"] in now] == [row for row in rows if row["arch"] in known], again


def test_table_shows_every_row(committed):
    lines = machine_code.table(committed).splitlines()
    assert len(lines) == 1 + len(committed)
    for line, row in zip(lines[1:], committed, strict=True):
        assert re.match(rf" *{row['arch']} {re.escape(machine_code.title(row))} +{row['registers']} ", line), line


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.128", 128),
        ("LDG.E.64.CONSTANT", 64),
        ("LDG.E.U16", 16),
        ("STG.E.U8", 8),
        ("LDG.E.S8", 8),
        ("LDG.E.ENL2.256", 256),
        ("STG.E.128.STRONG.SM", 128),
    ],
)
def test_width_of_an_access(opcode, bits):
    assert machine_code.bits(opcode) == bits
