"""Environment variables of the library, and GPUs that cannot run the kernels: errors come early and name the cause."""

import ctypes
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sewsnn
from sewsnn import functional
from sewsnn.errors import ConfigError, SettingError, UserError
from sewsnn.ops import load
from sewsnn.surrogate import ATan
from sewsnn.train.distributed import Processes

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(load.NATIVE_ERROR is not None, reason="without the compiled library")
SETS = ("avx512", "avx2", "generic")
HERE_ARE = SETS[SETS.index(load.INSTRUCTION_SET or "generic") :]

# torch is imported once; each case is a process that has not imported sewsnn yet.
IMPORTS = """
import os, sys, torch
for case in sys.argv[1:]:
    name, _, value = case.partition("=")
    sys.stdout.flush()
    if os.fork() == 0:
        os.environ[name] = value
        try:
            from sewsnn.ops import load
            print("imported", load.INSTRUCTION_SET)
        except Exception as error:
            print(type(error).__name__, [kind.__name__ for kind in type(error).__mro__[1:3]], error)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def imports(*cases: str) -> list[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("SEWSNN_CPU", "SEWSNN_CPU_KEEP_MB")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *cases], env=env, cwd=HERE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stdout  # each error is one line
    return lines


def test_variables_are_checked_at_import():
    """An instruction set that there is, a number of megabytes; empty is unset. An error names variable, value and what
    is allowed."""
    best = HERE_ARE[0]
    sets = {"": best, "generic": "generic", best: best, **{name: name for name in HERE_ARE}}
    wrong_sets = ["AVX512", "Avx2", "sse", "avx512 ", "0", "a\nb" + "c" * 3000, *(s for s in SETS if s not in HERE_ARE)]
    numbers, wrong_numbers = ["", "0", "12", "1.5", "1e3"], ["abc", "-1", "1 MB", "nan", "inf", "0x10", "1,5", "--"]
    cases = [f"SEWSNN_CPU={value}" for value in (*sets, *wrong_sets)]
    cases += [f"SEWSNN_CPU_KEEP_MB={value}" for value in (*numbers, *wrong_numbers)]
    said = dict(zip(cases, imports(*cases), strict=True))
    for value, chosen in sets.items():
        assert said[f"SEWSNN_CPU={value}"] == f"imported {chosen}"
    for value in numbers:
        assert said[f"SEWSNN_CPU_KEEP_MB={value}"] == f"imported {best}"
    for value in wrong_sets:
        message = said[f"SEWSNN_CPU={value}"]
        assert message.startswith("SettingError ['UserError', 'ValueError'] SEWSNN_CPU must be one of"), message
        assert ", ".join(HERE_ARE) in message and " ".join(value[:30].split()) in message and len(message) < 300
    for value in wrong_numbers:
        message = said[f"SEWSNN_CPU_KEEP_MB={value}"]
        assert "SEWSNN_CPU_KEEP_MB must be a number of megabytes, 0 or more" in message and repr(value) in message
    assert issubclass(SettingError, UserError)


@pytest.mark.parametrize("command", [["-m", "sewsnn.cli"], ["-c", "import sys; sys.argv[0] = 'sewsnn'; import sewsnn"]])
def test_the_command_line_says_it_in_one_line(command):
    env = os.environ | {"SEWSNN_CPU": "AVX512"}
    done = subprocess.run(
        [sys.executable, *command, *(["info"] if command[0] == "-m" else [])],
        env=env, cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"sewsnn: error: SEWSNN_CPU must be one of .* got 'AVX512'\n", done.stderr)


TWICE = """
import sys, sewsnn
from sewsnn.ops import load
first = load.LIBRARY
for name in [name for name in sys.modules if name.startswith("sewsnn")]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
from sewsnn.ops import load
print(load.LIBRARY != first, load.NATIVE_ERROR)
"""


def test_a_second_copy_of_the_library(tmp_path):
    """Two installations in one process: the second reports it and uses the reference (torch would end the process)."""
    shutil.copytree(Path(sewsnn.__file__).parent, tmp_path / "sewsnn", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", TWICE, tmp_path], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True another copy of sewsnn's compiled library is loaded already")


# ---- a GPU without kernels


@pytest.fixture
def no_gpu_kernels(monkeypatch):
    """Simulates a library with CUDA kernels that GPU 1 cannot run; returns the list of devices that were asked."""
    asked = []

    def answer(name, index):
        asked.append((name, index))
        return (1, "the driver is too old") if index == 1 else (0, "")

    monkeypatch.setattr(load, "ask_library", answer)
    monkeypatch.setattr(load, "_cuda_problems", {})
    monkeypatch.setattr(load, "_announced", set())
    monkeypatch.setattr(load, "NATIVE_DEVICES", ("cpu", "cuda"))
    return asked


def test_a_gpu_that_cannot_run_the_kernels(no_gpu_kernels):
    """``auto`` falls back with one warning; ``native`` raises. The library is asked once per GPU that is used."""
    bad, good = torch.device("cuda", 1), torch.device("cuda", 0)
    reason = "the compiled kernels cannot run on cuda:1: the driver is too old"
    with pytest.warns(sewsnn.BackendWarning, match=reason):
        assert load.resolve_backend("auto", bad, ATan()) == "torch"
    assert load.resolve_backend("auto", bad, ATan()) == "torch"  # a second warning would be an error here
    with pytest.raises(sewsnn.BackendError, match=f"backend='native' cannot run: {reason}"):
        load.resolve_backend("native", bad, ATan())
    assert load.resolve_backend("torch", bad, ATan()) == "torch"
    for _ in range(2):
        assert load.resolve_backend("native", good, ATan()) == load.resolve_backend("auto", good, ATan()) == "native"
    assert no_gpu_kernels == [("sewsnn_cuda_problem", 1), ("sewsnn_cuda_problem", 0)]


def test_calls_on_the_cpu_ask_nothing(no_gpu_kernels):
    functional.if_multistep(torch.rand(2, 3))
    functional.if_multistep(torch.rand(2, 3, device="meta"))
    assert load.resolve_backend("auto", "cuda", ATan()) == "native"  # a type of device alone
    assert no_gpu_kernels == []


def test_info_says_it(no_gpu_kernels, monkeypatch, capsys):
    from sewsnn.cli import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "cuda:0: GPU 0: the native kernels are available\n" in text
    assert "cuda:1: GPU 1: the compiled kernels cannot run on cuda:1: the driver is too old\n" in text
    assert f"kernels for cpu ({load.INSTRUCTION_SET}), cuda" in text


def test_traced_as_a_constant(no_gpu_kernels):
    """torch.compile asks the library while it traces; the graph contains no such call and does not break."""

    def f(x):
        return x + (1 if load.why_not_native(torch.device("cuda", 1), ATan) is None else 2)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2)).tolist() == [2, 2] and len(no_gpu_kernels) == 1


def test_the_library_answers():
    """Also without a driver it returns a reason and does not crash. A library without the function is not asked."""
    answer = load.ask_library("sewsnn_cuda_problem", 0)
    if "cuda" not in load.NATIVE_DEVICES:
        assert answer is None
        return
    wrong, text = answer
    assert wrong == bool(text)
    if not torch.cuda.is_available():
        assert "driver" in text or "device" in text
        assert load.ask_library("sewsnn_cuda_problem", 99)[0] == 1
    assert load.ask_library("sewsnn_no_such_function") is None


def test_a_library_without_the_function(monkeypatch):
    """An older library, or one with only CPU kernels."""
    monkeypatch.setattr(load, "ask_library", lambda *_: None)
    monkeypatch.setattr(load, "_cuda_problems", {})
    assert load.cuda_problem(0) is None and load._instruction_set() is None


@pytest.mark.skipif("cuda" not in load.NATIVE_DEVICES, reason="no CUDA kernels")
def test_launch_errors_may_be_of_earlier_kernels():
    text = ctypes.create_string_buffer(1024)
    ctypes.CDLL(str(load.LIBRARY)).sewsnn_launch_error(b"bn_update", 700, text, len(text))
    message = text.value.decode()
    assert message.startswith("sewsnn: bn_update could not be launched: an illegal memory access")
    assert "earlier" in message and "CUDA_LAUNCH_BLOCKING=1" in message


# ---- the build


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("SEWSNN_CUDA", "yes", "SEWSNN_CUDA must be auto, 0 or 1, got 'yes'"),
        ("SEWSNN_WERROR", "on", "SEWSNN_WERROR must be 0 or 1, got 'on'"),
        ("MAX_JOBS", "many", "MAX_JOBS must be a number of parallel compilations, 1 or more, got 'many'"),
        ("MAX_JOBS", "0", "MAX_JOBS must be"),
        ("TORCH_CUDA_ARCH_LIST", "Hopper", "TORCH_CUDA_ARCH_LIST: cannot read 'Hopper'"),
        ("TORCH_CUDA_ARCH_LIST", " ; ", "TORCH_CUDA_ARCH_LIST: there is no architecture in ' ; '"),
    ],
)
def test_variables_of_the_build(variable, value, message, monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    build = runpy.run_path(str(HERE.parent / "setup.py"))
    for name in ("SEWSNN_CUDA", "SEWSNN_WERROR", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")  # as if unset
    assert build["parallel_jobs"]() == [] and build["choice"]("SEWSNN_WERROR", "0", "1") == "0"
    assert build["cuda_choice"]()[1] != "SEWSNN_CUDA=0"
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=re.escape(message)):
        build["cuda_choice"]()
        build["choice"]("SEWSNN_WERROR", "0", "1")
        build["parallel_jobs"]()
        build["cmake_architectures"](os.environ["TORCH_CUDA_ARCH_LIST"])


@pytest.mark.parametrize("rank, world", [("5", "1"), ("2", "2"), ("-1", "2"), ("0", "0"), ("", "2"), ("a", "2")])
def test_places_of_processes(rank, world, monkeypatch):
    """A rank that does not exist would train and write nothing, so it is an error."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE and LOCAL_RANK must be numbers"):
        Processes("cpu")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert Processes("cpu").world == 1
