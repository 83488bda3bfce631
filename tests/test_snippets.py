"""Every Python snippet in docs/ runs as it is written, from the top of its page to the bottom."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from sewsnn import models
from sewsnn.models import registry

DOCS = Path(__file__).parent.parent / "docs"
ELSEWHERE = {"models.md": "test_docs.py", "spikingjelly.md": "bridge"}  # these pages are run there
PAGES = [page.name for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text(encoding="utf-8")]


def run(page):
    text, names = (DOCS / page).read_text(encoding="utf-8"), {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(code, names)
    return names


class NMNIST:
    """A stand-in for a data set of tonic, which fills its folder itself."""

    sensor_size = (34, 34, 2)

    def __init__(self, save_to, train=True):
        self.labels = np.arange(64 if train else 16) % 10

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        events = np.zeros(500, np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
        events["t"] = np.arange(500) * 100
        events["x"] = events["y"] = index % 34
        return events, int(self.labels[index])


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch, one_thread):
    """Provides what a page assumes: a downloaded file, and a package that downloads."""
    monkeypatch.chdir(tmp_path)
    tonic = ModuleType("tonic")
    tonic.datasets = SimpleNamespace(NMNIST=NMNIST)
    monkeypatch.setitem(sys.modules, "tonic", tonic)
    torch.manual_seed(0)


def test_blocks():
    assert run("blocks.md")["out"].shape == (4, 2, 64, 28, 28)


def test_checkpoints(tmp_path):
    models.save_checkpoint(models.create_model("sew_resnet18"), tmp_path / "checkpoint_319.pth", "authors")
    assert run("checkpoints.md")["report"].complete
    assert (tmp_path / "for_spikingjelly.pth").exists()


def test_export():
    pytest.importorskip("onnxruntime")
    names = run("export.md")
    assert names["logits"].shape == names["onnx_logits"].shape == (5, 1000)


def test_data():
    x_seq = run("data.md")["x_seq"]
    assert x_seq.shape[0] == 10 and x_seq.shape[2:] == (2, 34, 34) and x_seq.is_floating_point()


def test_paper():
    names = run("paper.md")
    assert len(names["rates"]) == len(names["norms"]) == 10 and set(names["layers"]) == {"layer1.sn"}
    stage = names["norms"][:2]
    assert stage[0].norm == stage[1].norm == names["predicted"][0], "SEW identity blocks pass the gradient on unchanged"


def test_neurons():
    names = run("neurons.md")
    assert names["s_seq"].shape == (8, 2, 16) and names["node"].v is None


def test_extending(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))  # the page registers a network
    names = run("extending.md")
    assert names["x_seq"].grad.abs().sum() > 0 and names["logits"].shape == (2, 10)
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    gradient = names["Triangle"](2.0).gradient(x)
    assert gradient.max() == 0.5 and torch.trapezoid(gradient, x).item() == pytest.approx(1, abs=1e-2)
    assert set(names["s_seq"].unique().tolist()) <= {0.0, 1.0}


def test_no_page_is_left_out():
    run_here = {"blocks.md", "checkpoints.md", "data.md", "export.md", "extending.md", "neurons.md", "paper.md"}
    assert set(PAGES) == {*run_here, *ELSEWHERE}
