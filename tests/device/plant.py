"""Builds the library of ops with a fault, to see that the pretended device finds it."""

import json
import re
import shlex
import subprocess
from pathlib import Path

#: fault -> (file of csrc/ops, what is there, what replaces it)
FAULTS = {
    "no device guard": ("cuda.cpp", "guard_(device_of(x))", "guard_(0)"),
    "a workspace that is too small": (
        "bn_cuda.cpp",
        "set_workspace(call, need, 1, gpu.stream)",
        "set_workspace(call, {need.bytes / 2, need.counters}, 1, gpu.stream)",
    ),
    "a gradient that is not widened": ("neuron_cuda.cpp", "    widen(call.grad_s, p.T);\n", ""),
    "the default stream": (
        "cuda.cpp",
        "  return static_cast<cudaStream_t>(stream);",
        "  return reinterpret_cast<cudaStream_t>(reinterpret_cast<uintptr_t>(stream) >> 32 << 32);",
    ),
    "a temporary freed early": (
        "bn_cuda.cpp",
        "  gpu.check(cuda_bn_statistics(p, gpu.stream));",
        "  call.partials.reset();\n  gpu.check(cuda_bn_statistics(p, gpu.stream));",
    ),
}


def build(fault: str, device: Path, csrc: Path, folder: Path) -> Path:
    """Compiles the changed file and links it with the other objects of the device. Returns the build folder.

    Args:
        fault: a key of :data:`FAULTS`.
        device: the folder of the device without faults (device_build.py).
        csrc: the sources.
        folder: a folder for the result.

    Raises:
        ValueError: the source no longer has the text that the fault replaces.
    """
    name, old, new = FAULTS[fault]
    source = csrc / "ops" / name
    text = source.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{source} has {text.count(old)} times, not once: {old!r}")
    changed = folder / name
    changed.write_text(text.replace(old, new), encoding="utf-8")
    commands = json.loads((device / "compile_commands.json").read_text())
    (entry,) = (c for c in commands if c["file"].endswith(f"/ops/{name}"))
    made = folder / f"{name}.o"
    words = shlex.split(entry["command"])
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(made), str(changed)
    subprocess.run([*words, f"-I{source.parent}"], cwd=entry["directory"], check=True)
    listed = subprocess.run(
        ["ninja", "-C", device, "-t", "commands", "libsewsnn.so"], capture_output=True, text=True, check=True
    )
    link = next(line for line in reversed(listed.stdout.splitlines()) if "-shared" in line and "libsewsnn.so" in line)
    link = re.sub(r"-o libsewsnn\.so", f"-o {folder / 'libsewsnn.so'}", link.removeprefix(": && ").split(" && :")[0])
    link = re.sub(rf"\S*/ops/{re.escape(name)}\.o", str(made), link)
    subprocess.run(shlex.split(link), cwd=device, check=True)
    for library in ("libpretended_torch.so", "libpretended_kernels.so"):
        (folder / library).symlink_to(device / library)
    return folder
