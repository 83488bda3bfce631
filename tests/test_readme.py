"""README.md and docs/performance.md are up to date, and their code and links work."""

import re
from pathlib import Path

import pytest

from benchmarks import dating, tables

ROOT = Path(__file__).parent.parent
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/performance.md")}
README = PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_numbers_come_from_the_results(page):
    """The page also marks numbers if the measured code has changed since."""
    assert tables.filled(page, PAGES[page]) == PAGES[page], f"{page} is not up to date: {tables.COMMAND}"


def test_results_older_than_the_code_are_called_so(monkeypatch):
    monkeypatch.setattr(tables, "is_current", lambda row: False)
    for page, text in PAGES.items():
        parts = tables.filled(page, text).split("<!-- end -->")
        measured = [part.split("<!-- ")[1] for part in parts[:-1]]
        measured = [part for part in measured if "No GPU" not in part and "Not yet measured" not in part]
        assert measured and all(tables.OLD in part for part in measured)
    monkeypatch.setattr(tables, "is_current", lambda row: True)
    assert not any(tables.OLD in tables.filled(page, text) for page, text in PAGES.items())


def gpu_rows(sources):
    about = {"device": "GPU", "driver": "1", "cuda": "13.0", "torch": "2.11", "date": "2026-01-01", "commit": "abc"}
    about |= {"op": "neuron", "sources": sources, "dtype": "bfloat16", "place": "stage1", "shape": [4, 32, 64, 56, 56]}
    for share, case in ((0.95, "IF_forward"), (0.91, "LIF_forward"), (0.5, "LIF_inference"), (0.8, "PLIF_backward")):
        yield {"case": case, "provider": "native", "share_of_copy": share, "GB_per_s": 1000 * share} | about
    for provider, ms in (("native", 0.1), ("compile", 0.2)):
        yield {"case": "LIF_forward_backward", "provider": provider, "p50_ms": ms} | about
    yield {"case": "LIF_forward_backward", "provider": "spikingjelly", "error": "ImportError"} | about
    yield {"stage": "smoke", "ok": True, "device": "GPU"}


def test_gpu_table():
    now = dating.sources_hash("neuron", "cuda")
    assert tables.gpu_table([]).startswith("**Not yet measured on a GPU**")
    assert tables.gpu_table([{"stage": "smoke", "ok": True, "device": "G"}]).startswith("**Not yet")
    assert tables.gpu_line([]).startswith("**No GPU has run these kernels yet.**")
    old, new = list(gpu_rows("old")), list(gpu_rows(now))
    text = tables.gpu_table([*old, *new])
    assert "| stage1 [4, 32, 64, 56, 56] | unmeasured | unmeasured | 91% (910 GB/s) | 80% (800 GB/s) |" in text
    assert "| stage1 bfloat16 | 0.100 ms (1.0x) | 0.200 ms (2.0x) |" in text
    assert "GPU, driver 1, CUDA 13.0, torch 2.11, 2026-01-01, commit abc." in text and tables.OLD not in text
    assert tables.OLD in tables.gpu_table(old) and tables.OLD in tables.gpu_line(old)
    assert tables.gpu_line(new).startswith("Measured on GPU, 2026-01-01") and tables.OLD not in tables.gpu_line(new)


def test_code_runs(tmp_path, monkeypatch):
    """From top to bottom; the loop it shows gives the spikes of the op. (The line for SpikingJelly: tests/bridge.)"""
    monkeypatch.chdir(tmp_path)
    use, loop, modules, convert = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    for code in (use, loop, modules):
        exec(code, names)
    assert names["s_seq"].shape == names["x_seq"].shape == names["x_seq"].grad.shape == names["out"].shape
    assert names["v"].shape == names["x_seq"].shape[1:] and names["logits"].shape == (2, 1000)
    assert "sewsnn.convert.from_spikingjelly(net)" in convert


def test_files_it_names_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    targets += re.findall(r"^sh (\S+)$", README, re.MULTILINE)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target).exists(), target
