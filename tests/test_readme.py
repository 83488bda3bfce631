"""What the README says is so."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_come_from_the_results():
    """`python benchmarks/tables.py` would change nothing."""
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["filled"](README) == README


def test_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["s_seq"].shape == names["x_seq"].shape == names["x_seq"].grad.shape
    assert names["v"].shape == names["x_seq"].shape[1:] and names["logits"].shape == (2, 1000)


def test_files_it_names_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    targets += re.findall(r"^sh (\S+)$", README, re.MULTILINE)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target).exists(), target
