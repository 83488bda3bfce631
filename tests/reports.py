"""Reads and checks the reports of ``sewsnn analyze``."""

import csv
import re

import small_run

from sewsnn.cli import main

# options of runs of a second
SMALL = {"blocks": "[1]", "widths": "[4]", "T": "2", "epochs": "2", "batch_size": "128", "train.threads": "1"}
WORDS = [word for key, value in SMALL.items() for word in (f"--{key}", value)]


def analyze_rates(source, output, *words):
    """Runs ``sewsnn analyze rates`` in this process; returns its status."""
    folders = source if isinstance(source, list) else [source]
    with small_run.same_threads():
        return main([str(word) for word in ("analyze", "rates", *folders, "--output", output, *words)])


def rows(folder, table):
    """The rows of ``<table>.csv``."""
    with open(folder / f"{table}.csv") as file:
        return list(csv.DictReader(file))


def networks_in(folder):
    return list(dict.fromkeys(row["network"] for row in rows(folder, "rates-blocks")))


def check_report(folder, name):
    """The report explains every column of every CSV file and shows every figure, figures are figures; returns it."""
    text = (folder / f"{name}.md").read_text()
    for path in folder.glob(f"{name}-*"):
        if path.suffix == ".csv":
            part = text.partition(f"[{path.name}]({path.name}):\n\n")[2].partition("\n\n")[0]
            assert [line.split("`")[1] for line in part.splitlines()] == list(rows(folder, path.stem)[0])
            assert all(line.startswith("- `") and len(line.partition("`: ")[2]) > 10 for line in part.splitlines())
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n") and f"]({path.name})\n" in text
            assert path.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    assert not re.search(r"\bnan\b", text)
    return text
