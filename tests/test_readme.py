"""What the README says is so."""

import re
from pathlib import Path

from benchmarks import tables
from sewsnn import models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_come_from_the_results():
    """And it says so where the kernels are newer than their results."""
    assert tables.filled(README) == README, f"the README is not up to date: {tables.COMMAND}"


def test_results_older_than_the_kernels_are_called_so():
    text = tables.filled(README, current="0123456789ab")
    assert "**Older kernels than these**" in text.split("<!-- cpu_table -->")[1].split("<!-- end -->")[0]


def gpu_rows(csrc):
    about = {"device": "GPU", "driver": "1", "cuda": "13.0", "torch": "2.11", "date": "2026-01-01", "commit": "abc"}
    about |= {"csrc": csrc, "dtype": "bfloat16", "place": "stage1", "shape": [4, 32, 64, 56, 56]}
    for share, case in ((0.95, "IF_forward"), (0.91, "LIF_forward"), (0.5, "LIF_inference"), (0.8, "PLIF_backward")):
        yield {"case": case, "provider": "native", "share_of_copy": share, "GB_per_s": 1000 * share} | about
    for provider, ms in (("native", 0.1), ("compile", 0.2)):
        yield {"case": "LIF_forward_backward", "provider": provider, "p50_ms": ms} | about
    yield {"case": "LIF_forward_backward", "provider": "spikingjelly", "error": "ImportError"} | about
    yield {"stage": "smoke", "ok": True, "csrc": csrc, "device": "GPU"}


def test_gpu_table():
    assert tables.gpu_table([], "0123").startswith("**Not yet measured on a GPU**")
    assert tables.gpu_table([{"stage": "smoke", "ok": True, "csrc": "0", "device": "G"}], "0").startswith("**Not yet")
    rows = [*gpu_rows("old"), *gpu_rows("0123")]
    text = tables.gpu_table(rows, "0123")
    assert "| stage1 [4, 32, 64, 56, 56] | unmeasured | unmeasured | 91% (910 GB/s) | 80% (800 GB/s) |" in text
    assert "| stage1 bfloat16 | 0.100 ms (1.0x) | 0.200 ms (2.0x) |" in text
    assert "GPU, driver 1, CUDA 13.0, torch 2.11, 2026-01-01, commit abc." in text and "Older" not in text
    assert "**Older kernels than these** (sources 0123)" in tables.gpu_table(rows, "4567")


def test_code_runs(tmp_path, monkeypatch):
    """From top to bottom, but for the line for scripts of SpikingJelly (tests/bridge), with the file that is loaded."""
    monkeypatch.chdir(tmp_path)
    use, convert, load = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(use, names)
    assert names["s_seq"].shape == names["x_seq"].shape == names["x_seq"].grad.shape
    assert names["v"].shape == names["x_seq"].shape[1:] and names["logits"].shape == (2, 1000)
    assert "sewsnn.convert.from_spikingjelly(net)" in convert
    (file,) = re.findall(r'"(\S+\.pth)"', load)
    models.save_checkpoint(models.create_model("sew_resnet50"), file, "authors")
    exec(load, names)


def test_files_it_names_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    targets += re.findall(r"^sh (\S+)$", README, re.MULTILINE)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target).exists(), target
