"""The command line."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sewsnn.cli import main
from sewsnn.models import list_models
from sewsnn.ops.load import LIBRARY, library_hash

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "sewsnn" in text and "backend native: kernels for cpu" in text and "backend cupy: not in" in text


def test_models(capsys):
    """The list of networks has one line each; a network has a table; some names have no table."""
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list_models()
    assert "186,858             21     207,360" in lines[list_models().index("sew_cifar10_net")]
    assert main(["models", "sew_7b_net"]) == 0
    table = capsys.readouterr().out
    assert "layer1.conv" in table and "130,426" in table.splitlines()[-1] and "T = 16" in table
    for name, message in (("sew_resnet", "has no fixed size"), ("resnet", "is unknown; see sewsnn models")):
        assert main(["models", name]) == 1
        assert message in capsys.readouterr().err


def test_library_knows_its_sources():
    """The tested library was built from the sources in this checkout."""
    csrc_hash = runpy.run_path(str(Path(__file__).parent.parent / "cmake" / "csrc_hash.py"))["csrc_hash"]
    assert library_hash() == csrc_hash()


def test_another_library(tmp_path):
    code = "from sewsnn.ops import load; print(load.LIBRARY, load.NATIVE_ERROR, load.NATIVE_DEVICES)"
    copy = shutil.copy(LIBRARY, tmp_path / "elsewhere.so")
    for path, expected in ((copy, f"{copy} None ('cpu'"), (tmp_path / "none.so", "but there is no such file ()")):
        env = os.environ | {"SEWSNN_LIBRARY": str(path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert expected in done.stdout


def test_wrong_command():
    with pytest.raises(SystemExit):
        main(["trian"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--surrogate", "Atan"], "model.neuron.surrogate must be one of ATan"),
        (["--tau", "0.5", "--type", "LIF"], "model.neuron: tau must be at least 1"),
        (["--surrogate_parameter", "-1"], "model.neuron: ATan: alpha must be positive"),
        (["--data.name", "digit"], "data.name: unknown data set 'digit' \\(nearest: 'digits'\\)"),
        (["--model.name", "sew_resnet19", "--blocks", "[]", "--widths", "[]"], "unknown model 'sew_resnet19'"),
        (["--T_train", "2"], "data.T_train: digits has still images"),
        (["--data.name", "dvs128_gesture"], "data.root must name the folder of the prepared files"),
        (
            ["--model.name", "sew_7b_net", "--blocks", "[]", "--widths", "[]"],
            "model: .*unexpected keyword argument 'stem'",
        ),
        (["--device", "cuda:99"], "train.device: cannot use 'cuda:99'"),
    ],
)
def test_settings_that_make_no_sense(words, message, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", CONFIG, "--output", str(output), *words]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sewsnn.data.preparing.prepare", stopped)
    assert main(["data", "prepare", "imagenet", "--root", "a", "--output", "b"]) == 130
    assert capsys.readouterr().err == "sewsnn: stopped\n"
