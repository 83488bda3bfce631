"""Plants faults in the library, one at a time, and prints those that no test notices.

    python scripts/mutate.py sewsnn/train/step.py [more files or folders] [--tests tests/test_x.py ...] [--count 40]

A fault is one small edit: another comparison, + for -, a negated `if`, another number, or a call, an assignment, a
keyword argument or a result left out. The checkout does not change: an import hook gives the edited source to the tests
and to the Python processes they start. Each fault is tested in a fork of this process, which has imported torch, with
those tests that run the edited line (with all of them if none runs it in its own process).
"""

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ["numpy", "torch", "yaml", "tqdm", "filelock", "hypothesis", "_hypothesis_pytestplugin", "sklearn.datasets"]
# The tests of each package, in addition to those that import the module.
TESTS = {
    "sewsnn/train": "training_parts train_step losses result evaluation train_state train_loop defaults eval",
    "sewsnn/data": "data data_order events loading webdataset imagenet prepare_events",
    "sewsnn/layers": "bn_layer bn_neuron fuse packed step_mode model_fusion sync",
    "sewsnn/analysis": "operations figures networks per_step kept_state",
    "sewsnn/models": "models paper stem checkpoints convert_checkpoint model_fusion",
    "sewsnn": "functional neuron surrogate gradients func kept_state step_mode",
    "sewsnn/ops": "functional neuron surrogate gradients func bn_neuron bn_autograd",
    "sewsnn/export": "export",
}
HOOK = """
import importlib.util, os, sys
from importlib.machinery import SourceFileLoader

class Loader(SourceFileLoader):
    def get_code(self, name):
        with open(os.environ["MUTANT_SOURCE"], encoding="utf-8") as file:
            return compile(file.read(), self.path, "exec", dont_inherit=True)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ.get("MUTANT_NAME"):
            path = os.environ["MUTANT_PATH"]
            return importlib.util.spec_from_file_location(name, path, loader=Loader(name, path))

sys.meta_path.insert(0, Finder)
"""
_PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
_PAIRS += [(ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr)]
SWAPS = dict(_PAIRS) | {b: a for a, b in _PAIRS} | {ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult}
EXACT = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # for these the swap is the negation
MESSAGES = {"say", "_say", "print", "warn", "tell", "set_postfix_str"}  # calls that only write messages


def edits(node):
    """Yields the texts that replace a node."""

    def edited(**changes):
        new = copy.copy(node)
        vars(new).update(changes)
        return ast.unparse(new)

    parts = [vars(node).get(name) for name in ("left", "right", "value")]
    is_text = any(isinstance(part, ast.JoinedStr) or isinstance(getattr(part, "value", 0), str) for part in parts)
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield f"({edited(ops=[*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]])})"
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS and not is_text:
        yield f"({edited(op=SWAPS[type(node.op)]())})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield repr(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Call):
        for word in node.keywords:
            if word.arg not in (None, "strict"):
                yield edited(keywords=[other for other in node.keywords if other is not word])
    elif isinstance(node, ast.Return) and node.value and ast.unparse(node.value) != "None":
        yield "return None"
    elif isinstance(node, ast.AugAssign) and not is_text:
        yield from ["pass"] + [edited(op=SWAPS[type(node.op)]())] * (type(node.op) in SWAPS)
    elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
        return
    elif isinstance(node, ast.Assign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "pass"


def mutants(path):
    """Yields ``(line, lines of its statement or None outside functions, before, after, source)`` for each fault."""
    source = path.read_bytes()
    starts = [0]
    for text in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text))

    def replaced(lines, node, text):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        shown = (" ".join(part.split())[:300] for part in (source[begin:end].decode(), text))
        return node.lineno, lines, *shown, (source[:begin] + text.encode() + source[end:]).decode()

    def visit(node, lines, in_function):
        called = getattr(node, "value", node) if isinstance(node, ast.Expr) else node
        called = called.func if isinstance(called, ast.Call) else None
        # Before Python 3.12 the position of a node in an f-string is unknown.
        skipped = isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom))
        if skipped or getattr(called, "id", getattr(called, "attr", "")) in MESSAGES:
            return
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            header = body and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            lines = range(node.lineno, max(node.lineno + 1, body[0].lineno) if header else node.end_lineno + 1)
        place = lines if in_function else None
        yield from (replaced(place, node, text) for text in edits(node))
        negates = isinstance(node, (ast.If, ast.IfExp, ast.While)) and ast.unparse(node.test) != "TYPE_CHECKING"
        if negates and not (isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], EXACT)):
            yield replaced(place, node.test, f"(not ({ast.unparse(node.test)}))")
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    yield from visit(child, lines, in_function or isinstance(node, ast.FunctionDef))

    yield from visit(ast.parse(source), None, False)


class Plugin:
    """For pytest: which lines of ``files`` each test runs, with its fixtures, and how long it takes. With ``only``,
    the other tests are left out."""

    def __init__(self, files=(), only=None):
        self.files, self.only, self.now = set(map(str, files)), only, set()
        self.ran, self.of_fixture, self.seconds = {}, defaultdict(set), Counter()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self.only is None or item.nodeid in self.only]

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename in self.files:
            self.now.add((frame.f_code.co_filename, frame.f_lineno))
            return self.trace
        return None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before, self.now = self.now, set()
        yield
        self.of_fixture[fixturedef] |= self.now
        self.now = before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now = set()
        for module in (sys, threading) if self.files else ():
            module.settrace(self.trace)
        yield
        sys.settrace(None)
        used = (self.of_fixture[one] for found in item._fixtureinfo.name2fixturedefs.values() for one in found)
        self.ran[item.nodeid] = sorted(self.now.union(*used))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration


def in_fork(folder, limit, tests, plugin, *words):
    """Returns pytest's exit status in a fork of this process, or None if it takes too long. ``folder`` receives the
    output, and what the plugin has found."""
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir()
    end, status = time.monotonic() + limit, None
    if not (child := os.fork()):
        os.setsid()
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        try:
            exec(HOOK, {})
            words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", *words]
            status = pytest.main([*words, *(str(ROOT / name) for name in tests)], plugins=[plugin])
            (folder / "found").write_text(json.dumps([plugin.ran, plugin.seconds]))
            sys.stdout.flush()
        finally:
            os._exit(70 if status is None else status)
    while time.monotonic() < end and status is None:
        time.sleep(0.02)
        done, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also the processes that it has started
    if status is None:
        os.waitpid(child, 0)
    return status


def tests_of(file):
    """Returns the test files of a module: those of its package in TESTS, and those that import the module."""
    package, _, module = file.relative_to(ROOT).with_suffix("").as_posix().rpartition("/")
    name = package.replace("/", ".")
    found = [ROOT / "tests" / f"test_{word}.py" for word in TESTS.get(package, "").split()]
    for test in sorted(set((ROOT / "tests").glob("test_*.py")) - set((ROOT / "tests").glob("*cuda*"))):
        lines = [line for line in test.read_text(encoding="utf-8").splitlines() if "import" in line]
        if any(f"{name}.{module} " in line or line.startswith(f"from {name} import {module}") for line in lines):
            found.append(test)
    return [test.relative_to(ROOT).as_posix() for test in dict.fromkeys(found) if test.exists()]


def plant(options, files, tests, folder):
    print(f"{len(files)} files; {' '.join(tests)}", flush=True)
    if in_fork(folder, 3600, tests, Plugin(files)) != 0:
        print((folder / "output").read_text()[-3000:], "The tests fail without a fault.", sep="\n")
        return 2
    ran, seconds = json.loads((folder / "found").read_text())
    print(f"without a fault {len(ran)} tests pass in {sum(seconds.values()):.0f} s", flush=True)
    totals = Counter()
    for file in files:
        counts, every = Counter(), list(mutants(file))
        chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
        name = file.relative_to(ROOT).with_suffix("").as_posix()
        for line, lines, before, after, source in sorted(chosen, key=lambda mutant: mutant[0]):
            reach = {
                test
                for test, places in ran.items()
                if any(path == str(file) and (lines is None or place in lines) for path, place in places)
            }
            (folder / "source").write_text(source, encoding="utf-8")
            os.environ["MUTANT_NAME"] = name.replace("/", ".").removesuffix(".__init__")
            os.environ |= {"MUTANT_PATH": str(file), "MUTANT_SOURCE": str(folder / "source")}
            cost = Counter()
            for test in reach or ran:
                cost[test.split("::")[0]] += seconds[test]
            limit = min(options.time, 15 + 5 * sum(cost.values()))
            status = in_fork(folder, limit, sorted(cost, key=cost.get), Plugin(only=reach or set(ran)), "-x")
            result = "timed out" if status is None else "killed" if status else "survived"
            counts[result] += 1
            if result != "killed":
                print(f"{result} ({len(reach)} tests run it): {name}.py:{line}: {before}  ->  {after}", flush=True)
        print(f"{name}.py: {len(chosen)} of {len(every)} faults, {dict(counts)}", flush=True)
        totals += counts
    print(f"in all: {totals.total()} faults, {dict(totals)}")
    return 1 if totals["survived"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="files and folders of the library")
    parser.add_argument("--tests", nargs="+", help="test files; default: those of the module and of its package")
    parser.add_argument("--count", type=int, default=40, help="faults per file (40)")
    parser.add_argument("--seed", type=int, default=0, help="selects the faults (0)")
    parser.add_argument("--time", type=float, default=120, help="seconds that the tests of one fault may take (120)")
    options = parser.parse_args()
    files = [file for path in options.paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    files = [file.resolve() for file in files]
    tests = options.tests or list(dict.fromkeys(test for file in files for test in tests_of(file)))
    folder = Path(tempfile.mkdtemp(prefix="mutate-"))
    (folder / "sitecustomize.py").write_text(HOOK)  # Python imports it when it starts
    os.chdir(ROOT)
    sys.path[:0] = paths = [str(folder), str(ROOT)]
    paths = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    for name in IMPORTED:
        importlib.import_module(name)
    try:
        return plant(options, files, tests, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
