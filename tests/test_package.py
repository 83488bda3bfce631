"""The top level of the package: its version, and parts that are imported at first use."""

import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sewsnn
from sewsnn import version

ROOT = Path(__file__).parent.parent


def test_version_is_said_once():
    assert sewsnn.__version__ == version.__version__
    assert importlib.metadata.version("sewsnn") == version.__version__
    assert f"\nversion: {version.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r'^dynamic = \["version"\]$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


def test_training_and_export_are_imported_when_used():
    code = (
        "import sys, sewsnn\n"
        "assert not {'sewsnn.train', 'sewsnn.export'} & sys.modules.keys()\n"
        "assert {'train', 'export'} <= set(dir(sewsnn)) and {'load_config', 'train'} <= set(dir(sewsnn.train))\n"
        "assert callable(sewsnn.export.export_model)\n"
        "assert sewsnn.train.loop.train is sewsnn.train.train\n"
        "assert sewsnn.train.config.load_config is sewsnn.train.load_config\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", [sewsnn, sewsnn.train])
def test_other_names_are_errors(module):
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'trian'"):
        module.trian  # noqa: B018


def test_no_function_hides_a_module():
    """``import sewsnn.layers.x`` and the attribute ``sewsnn.layers.x`` are the same thing, in every package."""
    packages, hidden = [sewsnn], []
    for package in packages:
        for found in pkgutil.iter_modules(package.__path__):
            value = getattr(package, found.name, None)
            if found.ispkg and isinstance(value, ModuleType):
                packages.append(value)
            if value is not None and not isinstance(value, ModuleType):
                hidden.append(f"{package.__name__}.{found.name}")
    assert {sewsnn.layers, sewsnn.models, sewsnn.train, sewsnn.export} <= set(packages) and not hidden
    assert callable(sewsnn.layers.fuse)
