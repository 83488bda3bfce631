"""The names of the kernels: template arguments, readable titles, and the files that instantiate them."""

import re
import shutil

from benchmarks import dating
from benchmarks.machine_code.tools import run

# The template parameters of each kernel. Neurons is CommonNeuron, which is not named, or OneNeuron<Neuron>.
PARAMETERS = {
    "forward_kernel": ("Neuron", "Storage", "N"),
    "backward_kernel": ("Neuron", "Storage", "K", "N", "Leak"),
    "sum_partials_kernel": ("Storage",),
    "sum_rows_kernel": ("Storage",),
    "channel_sums_kernel": ("Storage",),
    "bn_statistics_kernel": ("Storage", "N"),
    "bn_update_kernel": ("Storage",),
    "bn_forward_kernel": ("Storage", "N", "Shortcut", "Neurons"),
    "bn_bits_kernel": ("Storage",),
    "bn_unpack_kernel": ("Storage",),
    "bn_reduce_kernel": ("Storage", "K", "N", "Shortcut", "Usual", "Neurons"),
    "bn_apply_kernel": ("Storage", "K", "N", "Shortcut", "Usual", "Neurons"),
    "bn_pooled_forward_kernel": ("Storage", "K", "N", "Shortcut"),
    "bn_pooled_reduce_kernel": ("Storage", "K", "N", "Usual", "Neurons"),
    "bn_pooled_apply_kernel": ("Storage", "K", "N", "Usual", "Neurons"),
    "max_pool_kernel": ("Storage", "N", "Window"),
    "max_pool_backward_kernel": ("Storage", "N", "Window"),
    "max_pool_statistics_kernel": ("Storage", "N", "Window"),
    "pool_forward_kernel": ("Storage", "K", "N"),
    "pool_reduce_kernel": ("Storage", "K", "N"),
    "pool_apply_kernel": ("Storage", "K", "N"),
    "pool_sums_kernel": ("Storage",),
}
FLAGS = ("Leak", "Shortcut", "Usual")
#: family of kernels -> the files of csrc with its instances
FAMILIES = {
    "neuron": ["inst/multistep_cuda.cu", "inst/backward_*.cu"],
    "bn": ["inst/bn_*.cu"],
    "pool": ["inst/pool_*.cu"],
    "max": ["inst/max_pool_*.cu"],
}
#: kernels whose names do not begin with their family
MEMBERS = {"channel_sums_kernel": "bn"}


def demangled(names: list[str]) -> list[tuple[str, list[str]]]:
    """Returns the kernel and its template arguments, as C++ writes them, for each mangled name."""
    filt = shutil.which("c++filt")
    if filt is None:
        raise SystemExit("c++filt was not found: install binutils")
    found = []
    for line in run(filt, text="\n".join(names)).stdout.splitlines():
        match = re.search(r"(\w+)<(.*)>\(", line)
        values = re.sub(r"\w+::|(?<=\w)<\w+>", "", match.group(2)).split(", ") if match else []
        found.append((match.group(1) if match else line, values))
    return found


def described(names: list[str]) -> list[dict]:
    """Returns the kernel and the template arguments of each mangled name."""
    rows = []
    for kernel, values in demangled(names):
        if len(values) != len(PARAMETERS.get(kernel, "")):
            raise SystemExit(f"PARAMETERS in {__file__} does not fit {kernel}<{', '.join(values)}>")
        rows.append({"kernel": kernel} | arguments(kernel, values))
    return rows


def arguments(kernel: str, values: list[str]) -> dict:
    """Returns the template arguments of a kernel by name, as far as :data:`PARAMETERS` names them."""
    row = dict(zip(PARAMETERS.get(kernel, ()), values, strict=False))
    if one := re.match(r"OneNeuron<(\w+)", row.pop("Neurons", "")):
        row = {"Neuron": one.group(1)} | row
    row["Storage"] = row.get("Storage", "").lower()
    row |= {name: int(row[name]) for name in ("K", "N") if name in row}
    return row | {name: row[name] == "true" for name in FLAGS if name in row}


def title(row: dict) -> str:
    """Returns a readable name such as ``backward_kernel<LeakyMultiply, bfloat16, K=16, N=4, Leak>``.

    Kernels of batch norm and of the stem without a neuron in their title serve IF, LIF and PLIF."""
    parts = [row[name] for name in ("Neuron", "Storage", "Window") if name in row]
    parts += [f"{name}={row[name]}" for name in ("K", "N") if name in row]
    parts += [name for name in FLAGS if row.get(name)]
    return f"{row['kernel']}<{', '.join(parts)}>"


def sources_of(row: dict) -> str:
    """Returns the hash of the code of this row's kernel: the files in inst with the instances of its family."""
    first = row["kernel"].split("_")[0]
    return dating.files_hash(FAMILIES[MEMBERS.get(row["kernel"], first if first in FAMILIES else "neuron")])
