"""Fills the generated tables of a page. Each table is between ``<!-- NAME -->`` and ``<!-- end -->``."""

import sys
from collections.abc import Callable
from pathlib import Path


def fill(page: str, tables: dict[str, Callable[[], str]], name: str) -> str:
    """Returns the page with new tables.

    Args:
        page: text of the page.
        tables: name of each table, and the function that returns its text.
        name: file name of the page, for the error message.

    Raises:
        SystemExit: the page lacks the marks of a table.
    """
    for table, make in tables.items():
        start, end = f"<!-- {table} -->\n", "\n<!-- end -->"
        head, begun, rest = page.partition(start)
        _, ended, tail = rest.partition(end)
        if not (begun and ended):
            raise SystemExit(f"{name} lacks the marks of {table}: <!-- {table} --> and <!-- end -->")
        page = head + start + make() + end + tail
    return page


def main(path: Path, filled: Callable[[str], str], command: str) -> None:
    """Writes the page with new tables. With ``--check`` on the command line it exits with an error if they differ."""
    text = path.read_text(encoding="utf-8")
    made = filled(text)
    if "--check" in sys.argv:
        sys.exit(f"{path.name} is not up to date: run {command}" if made != text else 0)
    path.write_text(made, encoding="utf-8")
