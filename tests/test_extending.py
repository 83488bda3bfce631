"""docs/extending.md: each patch of the page applies to a copy of the repository and touches as few files as the page
claims. All of them together, compiled, pass the tests of every neuron and surrogate."""

import difflib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
NEEDED = ("CMakeLists.txt", "cmake", "csrc", "sewsnn", "tests", "pyproject.toml")
patches_of = runpy.run_path(str(ROOT / "scripts" / "measures.py"))["patches_of"]

# The last example adds a surrogate, the others a neuron.
PATCHES = dict(re.findall(r"^#+ (Example: [^\n]+)\n.*?^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
NODES = {
    "Example: a linear leak": ("LinearLeakIFNode", {}),
    "Example: a learnt threshold": ("LearntThresholdIFNode", {"channels": 5}),
    "Example: two states": ("RisingThresholdLIFNode", {"v_reset": None}),
}
SURROGATE = "Example: a surrogate gradient"

pytestmark = pytest.mark.skipif(
    not ((ROOT / "csrc").is_dir() and shutil.which("git")), reason="needs the sources and git"
)


def copy_to(folder: Path) -> Path:
    """Copies the sources without what was built from them."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_file():
            shutil.copy(source, folder)
        else:
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def run(command, folder: Path, **environment) -> str:
    """Runs a command in a copy, with the package of the copy."""
    paths = os.pathsep.join([str(folder), str(folder / "tests")])
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "PATH": tools, "PYTHONDONTWRITEBYTECODE": "1", "SEWSNN_CPU": "generic"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def apply(patch: str, folder: Path) -> None:
    """Applies a patch as the page says. A git repository around the folder must not matter."""
    (folder / "new.patch").write_text(patch, encoding="utf-8")
    run(["git", "apply", "new.patch"], folder, GIT_CEILING_DIRECTORIES=str(folder.parent))
    (folder / "new.patch").unlink()


def insertions(before: str, after: str) -> list[tuple[int, str]]:
    """What a patch inserts into a text, and where; the patches of the page delete nothing."""
    found, place = [], 0
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for _, i, j, k, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        a, b = "".join(old[i:j]), "".join(new[k:end])
        if a != b:
            same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            rest = len(a) - same
            assert b[len(b) - rest :] == a[same:], f"not only an insertion: {a!r} -> {b!r}"
            found.append((place + same, b[same : len(b) - rest]))
        place += len(a)
    return found


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A copy of the sources for each patch, with the patch."""
    found = {}
    for heading, patch in PATCHES.items():
        found[heading] = copy_to(tmp_path_factory.mktemp("copy"))
        apply(patch, found[heading])
    return found


@pytest.fixture(scope="module")
def together(copies, tmp_path_factory):
    """A copy with all patches, compiled for one instruction set. What several patches insert at one place follows in
    the order of the page."""
    folder = copy_to(tmp_path_factory.mktemp("together"))
    for name in sorted({name for files in patches_of(PAGE).values() for name in files}):
        before = (folder / name).read_text(encoding="utf-8") if (folder / name).exists() else ""
        found = []
        for copy in copies.values():
            if (copy / name).exists():
                found += insertions(before, (copy / name).read_text(encoding="utf-8"))
        text = before
        for place, new in sorted(found, key=lambda insertion: insertion[0])[::-1]:
            text = text[:place] + new + text[place:]
        (folder / name).write_text(text, encoding="utf-8")
    torch_folder = Path(torch.__file__).parent
    include = f"{torch_folder / 'include'};{torch_folder / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"
    options = {"SEWSNN_TORCH_INCLUDE": include, "SEWSNN_TORCH_LIB": torch_folder / "lib", "SEWSNN_GENERIC": "ON"}
    options["SEWSNN_CSRC_HASH"] = run([sys.executable, "cmake/csrc_hash.py"], folder).strip()
    run(["cmake", "-GNinja", "-S.", "-Bbuild", *(f"-D{name}={value}" for name, value in options.items())], folder)
    run(["cmake", "--build", "build"], folder)
    shutil.copy(folder / "build" / "libsewsnn.so", folder / "sewsnn" / "_native")
    return folder


def test_each_patch_touches_the_files_that_the_page_claims(copies):
    assert set(PATCHES) == {*NODES, SURROGATE} == set(patches_of(PAGE))
    counts = {heading: len(files) for heading, files in patches_of(PAGE).items()}
    assert counts == {**dict.fromkeys(NODES, 4), SURROGATE: 3}
    table = dict(re.findall(r"^\| \[a compiled (neuron|surrogate gradient)\]\(.*\| (\d) files \|$", PAGE, re.MULTILINE))
    assert table == {"neuron": "4", "surrogate gradient": "3"}


@pytest.mark.parametrize("heading", NODES)
def test_neuron_without_its_kernels(heading, copies):
    """After the patch alone, the neuron runs on the torch backend."""
    name, settings = NODES[heading]
    code = f"""
import torch
from sewsnn import neuron
node = neuron.{name}(backend="torch", **{settings})
x_seq = (2 * torch.rand(6, 3, 5)).requires_grad_()
s_seq = node(x_seq)
s_seq.sum().backward()
assert node.v.shape == (3, 5) and 0 < s_seq.mean() < 1 and x_seq.grad.any()
assert all(p.grad.all() for p in node.parameters())
"""
    run([sys.executable, "-c", code], copies[heading])


def test_compiled(together):
    """The tests that take every neuron and every surrogate from the library, and the docstrings of the new classes."""
    names = [name for name, _ in NODES.values()]
    code = "from sewsnn.ops.registry import KINDS, SURROGATES; print(*KINDS, *SURROGATES)"
    told = run([sys.executable, "-c", code], together).split()
    assert {name.removesuffix("Node") for name in names} | {"FastSigmoid"} <= set(told)
    tests = ["tests/test_every_kind.py", "tests/test_surrogate.py", "tests/test_docstrings.py"]
    tests.append("tests/test_new_neurons.py::test_the_reference_knows_what_the_library_knows")
    report = run([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests], together)
    for name in names:
        for test in ("equals_the_reference", "works_after_batch_norm", "state_is_kept"):
            assert re.search(rf"::test_{test}\[.*{name}\] PASSED", report), (test, name)
    assert re.search(r"::test_compiled_form\[.*FastSigmoid.*\] PASSED", report)


def test_cuda_kernels_on_the_host(together, tmp_path):
    """The CUDA kernels of the new neurons. IF takes the places of the neurons that were there before: their kernels
    have tests of their own, and take minutes to compile."""
    csrc = Path(shutil.copytree(together / "csrc", tmp_path / "csrc"))
    registry = csrc / "neurons" / "registry.h"
    before = (ROOT / "csrc" / "neurons" / "registry.h").read_text(encoding="utf-8")
    kinds, common = (re.search(rf"using {name} = List<([^;]*)>;", before)[1] for name in ("Kinds", "Common"))
    text = registry.read_text(encoding="utf-8")
    assert kinds in text and common in text
    text = text.replace(kinds, re.sub(r"\w+", "IF", kinds)).replace(common, "IntegrateFire<S>")
    registry.write_text(text, encoding="utf-8")
    chosen = " or ".join(name for name, _ in NODES.values())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    report = run([*command, "tests/native/test_every_kind_on_host.py"], together, SEWSNN_HOST_CSRC=str(csrc))
    assert re.search(rf"^{2 * len(NODES)} passed, ", report, re.MULTILINE), report
