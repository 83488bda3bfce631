"""Copies tables and statements of the reports in docs/paper/ into docs/paper.md, so that no number is written twice.

python -m docs.analyses            writes them
python -m docs.analyses --check    exits with an error if they are not up to date
"""

import re
from pathlib import Path

from docs.marks import fill, main

PAGE = Path(__file__).parent / "paper.md"
REPORTS = Path(__file__).parent / "paper"
COMMAND = "python -m docs.analyses"


def report(name: str) -> str:
    """Returns the text of a report of sewsnn analyze."""
    return (REPORTS / f"{name}.md").read_text(encoding="utf-8")


def table(name: str, number: int = 0) -> str:
    """Returns a table of a report, counted from 0."""
    return re.findall(r"(?:^\|.*\|\n)+", report(name), re.MULTILINE)[number].rstrip()


def statements(name: str) -> str:
    """Returns a table of the statements that a report tested, and whether they hold."""
    text = report(name).partition("## What is seen")[2].partition("\n## ")[0]
    found = re.findall(r"^- (.*?) (Holds|\*\*Does not hold\*\*|Undecided): ", text, re.MULTILINE)
    assert len(found) == text.count("\n- "), f"a statement of {name}.md was not understood"
    rows = [f"| {claim.rstrip('.')} | {answer.lower()} |" for claim, answer in found]
    return "\n".join(["| statement | on these data |", "|---|---|", *rows])


def machine() -> str:
    """Returns the lines of the reports that name machine, versions and date; each once."""
    lines = {line for path in REPORTS.glob("*.md") for line in re.findall(r"^- machine: (.*)$", path.read_text(), re.M)}
    return "\n".join(sorted(lines))


def filled(page: str) -> str:
    """Returns the page with new tables."""
    tables = {
        "rtd": lambda: table("rtd"),
        "rtd statements": lambda: statements("rtd"),
        "functions": lambda: table("functions"),
        "functions statements": lambda: statements("functions"),
        "energy": lambda: table("rates"),
        "gradients": lambda: table("gradients"),
        "gradients statements": lambda: statements("gradients"),
        "surrogates": lambda: table("surrogates"),
        "surrogates statements": lambda: statements("surrogates"),
        "machine": machine,
    }
    return fill(page, tables, PAGE.name)


if __name__ == "__main__":
    main(PAGE, filled, COMMAND)
