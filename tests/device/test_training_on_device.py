"""``sewsnn train`` on the pretended CUDA device: prefetch on a separate stream, AMP, evaluation, checkpoint.

The test of a resumed run is that of tests/test_training_cuda.py.
"""

import json

import pytest
from test_training_cuda import CONFIG, SMALLER
from thorough import THOROUGH

from sewsnn.cli import main

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"] if THOROUGH else ["fp16"])
def test_an_epoch(amp, few_digits, tmp_path, device_launches):
    """An epoch of the quick start."""
    words = ["--device", "cuda", *SMALLER, "--epochs", "1", *(("--amp", amp) if amp != "off" else ())]
    assert main(["train", CONFIG, *words, "--output", str(tmp_path / "run")]) == 0
    assert device_launches() > 50
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert main(["eval", str(tmp_path / "run"), "--device", "cuda", "--json", str(tmp_path / "eval.json")]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["accuracy"][-1] == result["test_accuracy"]


@pytest.fixture
def device_launches(request):
    device = request.config.pluginmanager.get_plugin("pretended").pretended
    before = device.launches()
    return lambda: device.launches() - before
