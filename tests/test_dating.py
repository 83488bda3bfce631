"""Results are dated by the code that they measure: cmake/csrc_hash.py and benchmarks/dating.py."""

import runpy
import shutil
from pathlib import Path

import pytest

from benchmarks import dating

ROOT = Path(__file__).parent.parent
HASHES = runpy.run_path(str(ROOT / "cmake" / "csrc_hash.py"))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, and a function that returns all hashes of it after an edit."""
    (tmp_path / "real").mkdir()
    for name in ("csrc", "cmake"):
        shutil.copytree(ROOT / name, tmp_path / "real" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path / "real")
    for path in (path for pattern in dating._CALL for path in ROOT.glob(pattern)):
        copy = tmp_path / "real" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)

    def hashes(folder="real"):
        found = runpy.run_path(str(tmp_path / folder / "cmake" / "csrc_hash.py"))
        ops = {(op, i): found["sources_hash"](files[i]) for op, files in dating.OPS.items() for i in (0, 1)}
        return ops | {"csrc": found["csrc_hash"]()}

    def edit(name, old, new):
        path = tmp_path / "real" / name
        text = path.read_text(encoding="utf-8")
        assert old in text, (name, old)
        path.write_text(text.replace(old, new), encoding="utf-8")
        return hashes()

    edit.hashes, edit.folder = hashes, tmp_path
    return edit


def changed(before, after):
    return {key for key in before if before[key] != after[key]}


def test_comments_and_white_space_do_not_count(checkout):
    before = checkout.hashes()
    for path in (checkout.folder / "real" / "csrc").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        path.write_text("// one more\n/* and\n   another */\n" + text.replace("  ", "    "), encoding="utf-8")
    path = checkout.folder / "real" / "sewsnn" / "functional.py"
    path.write_text(
        '"""Another docstring."""\n' + path.read_text(encoding="utf-8").split('"""', 2)[2] + "\n# the end\n"
    )
    assert checkout.hashes() == before


@pytest.mark.parametrize(
    "name, old, new, ops",
    [
        ("csrc/kernels/cpu_tiles.h", "kPrefetch = 2048", "kPrefetch = 4096", {"neuron", "call", "block", "step"}),
        ("csrc/kernels/pool_cpu.h", "int64_t", "long", {"step"}),
        ("csrc/kernels/bn_forward.cuh", "Shortcut", "WithShortcut", {"block", "step"}),
        ("sewsnn/functional.py", "if store_v_seq", "if not store_v_seq", {"call"}),
        ("CMakeLists.txt", "-fno-math-errno", "-fno-math-errno -funroll-loops", {"neuron", "call", "block", "step"}),
    ],
)
def test_code_counts_where_it_is_compiled(checkout, name, old, new, ops):
    found = changed(checkout.hashes(), checkout(name, old, new))
    assert {key[0] for key in found if key != "csrc"} == ops and ("csrc" in found) == name.startswith("csrc")


def test_a_checkout_behind_a_link_has_the_same_hashes(checkout):
    (checkout.folder / "link").symlink_to(checkout.folder / "real")
    assert checkout.hashes("link") == checkout.hashes()


def test_a_file_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"there is no ops/nothing\.cpp in"):
        HASHES["sources_hash"](["ops/nothing.cpp"])


@pytest.mark.parametrize(
    "text, code",
    [
        ("int a; // one\nint b; /* two\n three */ int c;\n", "int a; int b; int c;"),
        ('f("http://x"); // y\n', 'f("http://x");'),
        ("x = 1'000; // it's\ny = '\\''; // '\n", "x = 1'000; y = '\\'';"),
        ("#define A \\\n  1 // x\r\nint a;\r\n#endif\n", "#define A 1\nint a;\n#endif"),
    ],
)
def test_comments_of_cpp(text, code):
    assert HASHES["code_of"](text) == code


def test_comments_and_docstrings_of_python():
    text = 'def f(x):  # one\n    """Two: ä."""\n\n    return "# three" + """four"""\n'
    assert HASHES["python_of"](text) == 'def f(x):\n\n    return "# three" + """four"""'.replace("\n\n", "\n")
    assert HASHES["python_of"]('class A:\n    """One\n    two."""\n    a = "x"\n') == 'class A:\n    a = "x"'


def test_a_row_is_current_as_long_as_its_code():
    row = dating.dated("neuron") | {"device": "CPU"}
    assert dating.is_current(row)
    assert not dating.is_current(row | {"sources": "0123456789ab"})
    assert not dating.is_current({"csrc": "7e1b084f9292"}), "a row of before: its code is unknown"
    assert not dating.is_current(row | {"driver": "1"}), "measured on CUDA, whose code is another"
