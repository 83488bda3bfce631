"""The measures of ``scripts/measures.py``, on small trees."""

import json
import shutil

import pytest

from scripts import measures, passed_files

C_PLACES = """// kind, tau, decay_input, v_threshold, v_reset
struct Options {
  int kind;  // surrogate
  double tau;
  bool decay_input;
  double v_threshold, v_reset;
};

void four(int kind, double tau, bool decay_input, double v_threshold);
void two(int a, double b) { three({kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}); }
void body(Options o) {
  p.kind = Kind(o.kind), p.tau = o.tau;
  p.alpha = number(o.alpha);
  /* decay_input */
  p.v_reset = o.v_reset;
  p.detach_reset = o.detach_reset;
}
  m.def(
      "op(Tensor x, int kind, float tau, "
      "bool decay_input, float v_threshold, float? v_reset)");
"""
PYTHON_PLACES = '''"""kind tau decay_input v_threshold v_reset"""

def four(kind, tau, decay_input, v_threshold):
    """v_reset"""
    kind = tau = decay_input = 1

def five(init_tau, decay_input, *, v_threshold=1.0, v_reset, surrogate_function):
    return call(
        x, kind=1, tau=float(init_tau),
        settings={"v_reset": 1, "detach_reset": 2}, v_threshold=3, alpha=4, surrogate=None,
    )

class Fields:
    kind: int  # v_reset

    tau: float
    decay_input: bool
    v_threshold: float
    alpha: float

def f(numbers):
    eps, kind, tau, decay_input, v_threshold, alpha = numbers
'''


def test_places():
    """One place per pair of brackets or body; comments, docstrings and four names are none."""
    assert measures.places(measures.c_tokens(C_PLACES)) == [3, 10, 12, 19]
    # The dictionary on one line counts for the call around it.
    assert measures.places(measures.python_tokens(PYTHON_PLACES)) == [7, 9, 14, 22]


def test_names_far_from_each_other_are_no_place():
    names = ["kind", "tau", "decay_input", "v_threshold", "v_reset"]
    near, far = ("f(\n" + ("\n" * gap).join(f"{name}," for name in names) + "\n)\n" for gap in (2, 3))
    assert measures.places(measures.python_tokens(near)) == measures.places(measures.c_tokens(near)) == [2]
    assert measures.places(measures.python_tokens(far)) == measures.places(measures.c_tokens(far)) == []


@pytest.fixture
def tree(tmp_path):
    files = {
        "csrc/core/a.h": '#include "core/b.h"\n#include "neurons/n.h"\n#include <ops/none.h>\n',
        "csrc/core/b.h": '#include "neurons/n.h"\n#include "neurons/m.h"\n/* a\n   comment */\n\nint x;  // y\n',
        "csrc/ops/o.cpp": '#include "core/a.h"\n#include "inst/i.h"\n',
        "csrc/note.txt": "not a source\n",
        "sewsnn/__init__.py": "from sewsnn import functional\n",
        "sewsnn/functional.py": '"""A\ndocstring."""\nfrom sewsnn.ops import (\n    neuron,\n)\n\nA = """b\nc"""\n',
        "sewsnn/ops/__init__.py": "",
        "sewsnn/ops/neuron.py": "from . import load\nimport torch\n\ndef f():\n    from sewsnn.ops.load import g\n",
        "sewsnn/ops/load.py": "from sewsnn.layers import fused\nfrom .neuron import f\n",
        "sewsnn/layers/__init__.py": "from .fused import a\n",
        "sewsnn/layers/fused.py": "def f():\n    import sewsnn.data.a\n",
        "sewsnn/data/a.py": "def f():\n    from sewsnn.layers.fused import x\n",
        "sewsnn/data/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sewsnn.data.c\n",
        "sewsnn/data/c.py": "from . import b\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_dependencies(tree):
    found = measures.measure(tree, None, {})
    assert found["import circles"] == ["sewsnn.ops.load <-> sewsnn.ops.neuron"]
    assert found["import circles in functions"] == ["sewsnn.data.a <-> sewsnn.layers.fused"]
    assert found["arrows upward"] == [
        "csrc/core/a.h -> neurons",
        "csrc/core/b.h -> neurons",
        "sewsnn.ops.load -> layers",
    ]
    assert found["files that x_seq passes on the CPU"] is None


def test_lines(tree):
    """Blank lines, comments and docstrings are no code; strings over two lines are."""
    assert measures.lines(tree / "csrc/core/b.h") == (6, 3)
    assert measures.lines(tree / "sewsnn/functional.py") == (8, 5)
    assert measures.measure(tree, None, {})["lines of csrc and sewsnn"] == 36


PAGE = """# Extend
## A neuron
```python
--- a/no/patch
+++ b/no/patch
```
```diff
diff --git a/csrc/neurons/new.h b/csrc/neurons/new.h
--- /dev/null
+++ b/csrc/neurons/new.h
@@ -0,0 +1,2 @@
+# not a heading
+--- counter
--- a/sewsnn/neuron.py
+++ b/sewsnn/neuron.py
```
Then:
```diff
--- a/sewsnn/neuron.py
+++ b/sewsnn/neuron.py
--- a/tests/old.py\t2020-01-01
+++ /dev/null
```
## A surrogate
Nothing yet.
"""


def test_patches(tree, capsys):
    assert measures.patches_of(PAGE) == {"A neuron": ["csrc/neurons/new.h", "sewsnn/neuron.py", "tests/old.py"]}
    assert measures.patches_of("# A page\nwithout patches\n") == {}
    (tree / "page.md").write_text(PAGE, encoding="utf-8")
    (tree / "a.patch").write_text("--- a/x\n+++ b/x\n", encoding="utf-8")
    words = [str(tree), "--page", str(tree / "page.md"), "--patch", str(tree / "a.patch")]
    measures.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["files of the patch: a.patch"] == ["x"] and len(found["files of the patch: A neuron"]) == 3
    measures.main(words)
    table = capsys.readouterr().out.splitlines()
    assert "arrows upward                                      3" in table
    assert "files that x_seq passes on the CPU          not measured" in table
    assert "  sewsnn.ops.load -> layers" in table


LIBRARY = {
    "CMakeLists.txt": """
cmake_minimum_required(VERSION 3.18)
project(sewsnn LANGUAGES CXX)
add_library(sewsnn SHARED csrc/ops/op.cpp csrc/ops/first.cpp csrc/inst/table.cpp)
target_include_directories(sewsnn PRIVATE csrc)
""",
    "csrc/core/math.h": "inline int twice(int x) { return 2 * x; }\n",
    "csrc/kernels/loop.h": """#include "core/math.h"
inline int loop(int x) { return twice(x) + 1; }
inline int unused(int x) { return x; }
""",
    "csrc/kernels/unused.h": "inline int other(int x) { return x; }\n",
    "csrc/inst/table.cpp": """#include "kernels/loop.h"
#include "kernels/unused.h"
int (*table)(int) = loop;
int others(int x) { return other(x); }
""",
    "csrc/ops/first.cpp": "int first() { return 1; }\n",
    "csrc/ops/op.cpp": """extern int (*table)(int);
int first();
extern "C" int op(int x) {
  static const int once = first();
  return table(x) + once;
}
""",
    "sewsnn/__init__.py": "from sewsnn import functional\n",
    "sewsnn/checks.py": "def check(x):\n    return x\ndef check_once():\n    pass\n",
    "sewsnn/once.py": "def once():\n    pass\n",
    "sewsnn/functional.py": """
import ctypes, os
from sewsnn import checks, once
library = ctypes.CDLL(os.environ["SEWSNN_LIBRARY"])
once.once()
def lif_multistep(x_seq, backend):
    return library.op(checks.check(len(x_seq)))
""",
}


@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "gcov"))), reason="needs cmake and gcov")
def test_passed_files(tmp_path):
    """Counts what each call runs, and not what only the first one or the import runs; csrc/core is arithmetic."""
    for name, text in LIBRARY.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text, encoding="utf-8")
    expected = ["sewsnn/checks.py", "sewsnn/functional.py", "csrc/kernels/loop.h", "csrc/ops/op.cpp"]
    assert passed_files.passed_files(tmp_path / "checkout", tmp_path / "build") == expected
