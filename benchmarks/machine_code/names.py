"""The names of the kernels: template arguments, readable titles, and the files that instantiate them."""

import re
import shutil

from benchmarks import dating
from benchmarks.machine_code.tools import run

# The template parameters of each kernel.
PARAMETERS = {
    "forward_kernel": ("Neuron", "Storage", "N"),
    "backward_kernel": ("Neuron", "Storage", "K", "N", "Leak"),
    "sum_partials_kernel": ("Storage",),
    "bn_statistics_kernel": ("Storage", "N"),
    "bn_update_kernel": ("Storage",),
    "bn_forward_kernel": ("Storage", "N", "Shortcut"),
    "bn_bits_kernel": ("Storage",),
    "bn_unpack_kernel": ("Storage",),
    "bn_reduce_kernel": ("Storage", "K", "N", "Shortcut", "Usual"),
    "bn_apply_kernel": ("Storage", "K", "N", "Shortcut", "Usual"),
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
}


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
        row = dict(zip(PARAMETERS[kernel], values, strict=True))
        row["Storage"] = row["Storage"].lower()
        row |= {name: int(row[name]) for name in ("K", "N") if name in row}
        row |= {name: row[name] == "true" for name in FLAGS if name in row}
        rows.append({"kernel": kernel} | row)
    return rows


def title(row: dict) -> str:
    """Returns a readable name such as ``backward_kernel<LeakyMultiply, bfloat16, K=16, N=4, Leak>``."""
    parts = [row[name] for name in ("Neuron", "Storage") if name in row]
    parts += [f"{name}={row[name]}" for name in ("K", "N") if name in row]
    parts += [name for name in FLAGS if row.get(name)]
    return f"{row['kernel']}<{', '.join(parts)}>"


def sources_of(row: dict) -> str:
    """Returns the hash of the code of this row's kernel: the files in inst with the instances of its family."""
    family = next((name for name in ("bn", "pool") if row["kernel"].startswith(f"{name}_")), "neuron")
    return dating.files_hash(FAMILIES[family])
