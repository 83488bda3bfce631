"""Every link between the pages leads to an existing file and an existing heading. Every file that a page or a comment
names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
INDEX = ROOT / "docs" / "README.md"


def links(page: Path) -> list[tuple[str, str]]:
    """Yields (path, heading) of each link to a file of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text)
    return [(path, heading) for path, heading in found if "://" not in path]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = [re.sub(r"[`*]", "", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for path, heading in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}, which is not there"
        assert not heading or heading in anchors(target), f"{page.name}: {path}#{heading} is no heading"


def test_the_index_names_every_page():
    named = {(INDEX.parent / path).resolve() for path, _ in links(INDEX)}
    assert {page for page in PAGES if page.name != "README.md"} <= named


def test_named_files_exist():
    """Paths with a folder, as pages, comments and docstrings write them. Folders and files in capitals stand for names
    that the reader chooses."""
    folders = ("csrc", "sewsnn", "docs", "tests", "benchmarks", "scripts", "cmake", "configs")
    files = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")}
    files |= {"benchmarks/results/gpu.jsonl"}  # what a command creates
    ends = {file[i:] for file in files for i in [0, *(m.end() for m in re.finditer("/", file))]}
    texts = {page: re.sub(r"```diff.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL) for page in PAGES}
    for file in sorted(files):
        if file.startswith(("csrc/", "sewsnn/", "benchmarks/")) and file.endswith((".h", ".cuh", ".cu", ".cpp", ".py")):
            lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
            texts[ROOT / file] = "\n".join(line for line in lines if not line.startswith("#include"))
    path = re.compile(r"(?<![\w/.$-])((?:[\w-]+/)+[\w-]+\.(?:h|cuh|cu|cpp|py|md|sh|yaml|cmake|toml|jsonl))\b")
    assert [
        f"{page.relative_to(ROOT)}: {name}"
        for page, text in texts.items()
        for name in path.findall(text)
        if name not in ends and not re.search(r"\b[A-Z]{3,}\b", name)
    ] == []
