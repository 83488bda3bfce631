"""Tables of a page that a program makes: each stands between ``<!-- NAME -->`` and ``<!-- end -->``."""

import sys
from collections.abc import Callable
from pathlib import Path


def fill(page: str, tables: dict[str, Callable[[], str]], name: str) -> str:
    """The page, called ``name``, with its tables made anew.

    Raises:
        SystemExit: the marks of one are missing.
    """
    for table, make in tables.items():
        start, end = f"<!-- {table} -->\n", "\n<!-- end -->"
        head, begun, rest = page.partition(start)
        _, ended, tail = rest.partition(end)
        if not (begun and ended):
            raise SystemExit(f"{name} lacks the marks of {table}")
        page = head + start + make() + end + tail
    return page


def main(path: Path, filled: Callable[[str], str], command: str) -> None:
    """Writes the page anew; with ``--check`` fails if it would change."""
    text = path.read_text(encoding="utf-8")
    made = filled(text)
    if "--check" in sys.argv:
        sys.exit(f"{path.name} is not up to date: {command}" if made != text else 0)
    path.write_text(made, encoding="utf-8")
