"""Rules for the sources in csrc."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def code(path: Path) -> str:
    """Returns the text without comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", path.read_text(encoding="utf-8"))


def test_kernels_touch_memory_through_the_vocabulary_alone():
    """No .cuh file dereferences a pointer; such an access would be neither counted nor checked. Empty assembly only
    hides a register from the compiler, and one cast finds the second array of a workspace."""
    for path in (ROOT / "csrc").rglob("*.cuh"):
        found = re.findall(
            r"[=(,;{]\s*\*\s*(?!\w+\)\(|this\b)(?!(?<=, \*)\w+;)[A-Za-z_(]"
            r"|__ldg|\basm\b(?!\(\"\")|reinterpret_cast<(?!uintptr_t|double\*>\(static)",
            code(path),
        )
        assert not found, f"{path.name}: {found}"


def test_nobody_waits_for_the_device():
    """csrc copies nothing to the host and never synchronises; Python reads no number of a tensor before a kernel."""
    waits = r"cuda\w*(Synchronize|Memcpy|Malloc|Free)\w*|aoti_torch_item\w*"
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(waits, code(path)), path
    for name in ("functional.py", "ops/neuron.py", "ops/bn.py", "ops/pool.py"):
        text = (ROOT / "sewsnn" / name).read_text(encoding="utf-8")
        assert not re.search(r"\.item\(\)|\.tolist\(\)|\.cpu\(\)|\.numpy\(\)|synchronize|nonzero", text), name


def test_only_ops_knows_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.parent.name != "ops":
            assert "torch" not in code(path), path


def test_dependencies_point_one_way():
    """core < neurons < kernels < inst, ops. core/dispatch.h names the neurons it dispatches to."""
    order = {"core": 0, "neurons": 1, "kernels": 2, "inst": 3, "ops": 3}
    for path in (ROOT / "csrc").rglob("*.*"):
        for folder in re.findall(r'#include "(\w+)/', path.read_text(encoding="utf-8")):
            allowed = order[folder] <= order[path.parent.name] or path.name == "dispatch.h"
            assert allowed, f"{path.parent.name}/{path.name} includes {folder}/"
