"""sewsnn.convert.from_spikingjelly: runs tests/bridge with two versions of SpikingJelly, and tests its absence.

Each version has its own folder ``<folder>/<version>``, which scripts/test.sh creates.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BRIDGE = Path(__file__).parent / "bridge"
FOLDER = Path(os.environ.get("SEWSNN_SPIKINGJELLY") or Path(sys.prefix) / "spikingjelly")
REQUIRED = os.environ.get("SEWSNN_REQUIRE_SPIKINGJELLY") == "1"


def run(arguments, *paths, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([*map(str, paths), *filter(None, [kept.get("PYTHONPATH")])])
    environment = {**kept, **variables, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=BRIDGE.parent.parent, capture_output=True, text=True
    )


@pytest.mark.parametrize("version", ["0.0.0.0.14", "2.0.0"])
def test_bridge(version):
    if version == "2.0.0" and sys.version_info < (3, 11):
        pytest.skip("SpikingJelly 2.0 needs Python 3.11")
    if not (FOLDER / version / "spikingjelly").is_dir():
        if REQUIRED:
            pytest.fail(f"SpikingJelly {version} is not in {FOLDER}")
        pytest.skip(f"SpikingJelly {version} is not in {FOLDER} (scripts/test.sh puts it there)")
    result = run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(BRIDGE)],
        FOLDER / version,
        BRIDGE / "stubs",
        SEWSNN_TEST_BRIDGE=version,
    )
    print(result.stdout[-4000:], result.stderr[-2000:])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", result.stdout)}
    assert result.returncode == 0 and counts.get("passed", 0) > 0, counts


def test_without_spikingjelly(tmp_path):
    """Without SpikingJelly, sewsnn can be imported, and the conversion says what is missing."""
    (tmp_path / "spikingjelly.py").write_text("raise ModuleNotFoundError(\"No module named 'spikingjelly'\")")
    code = """
import torch, sewsnn
try:
    sewsnn.convert.from_spikingjelly(torch.nn.Identity())
except sewsnn.errors.UserError as error:
    print(error)
try:
    sewsnn.convert.from_spikingjelly("model")
except TypeError as error:
    print(error)
"""
    result = run(["-c", code], tmp_path)
    assert result.returncode == 0, result.stderr
    missing, wrong = result.stdout.splitlines()
    assert "pip install spikingjelly" in missing and "spikingjelly" in missing
    assert wrong == "model must be a module, got str"
