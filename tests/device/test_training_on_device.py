"""``sewsnn train`` on the pretended CUDA device: prefetch on a separate stream, AMP, evaluation, checkpoint, resume."""

import json
from pathlib import Path

import pytest
import torch
from thorough import THOROUGH

from sewsnn.cli import main

CONFIG = str(Path(__file__).parent.parent.parent / "configs" / "digits.yaml")
# An epoch of the quick start, with a smaller network.
SMALL = ("--device", "cuda", "--widths", "[8]", "--blocks", "[1]", "--T", "2", "--batch_size", "256")

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"] if THOROUGH else ["fp16"])
def test_an_epoch(amp, tmp_path, device_launches):
    words = ["--epochs", "1", "--output", str(tmp_path / "run"), *(("--amp", amp) if amp != "off" else ())]
    assert main(["train", CONFIG, *SMALL, *words]) == 0
    assert device_launches() > 50
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert main(["eval", str(tmp_path / "run"), "--device", "cuda", "--json", str(tmp_path / "eval.json")]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["accuracy"][-1] == result["test_accuracy"]


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    words = [*SMALL, "--schedule.name", "constant", "--amp", "fp16", "--deterministic", "true"]
    try:
        for name, epochs in (("whole", "2"), ("cut", "1")):
            assert main(["train", CONFIG, "--output", str(tmp_path / name), *words, "--epochs", epochs]) == 0
        assert main(["train", CONFIG, "--output", str(tmp_path / "cut"), *words, "--epochs", "2", "--resume"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def device_launches(request):
    device = request.config.pluginmanager.get_plugin("pretended").pretended
    before = device.launches()
    return lambda: device.launches() - before
