"""Counts how often the library says the same thing, and how its parts depend on each other.

    python scripts/measures.py [CHECKOUT] [--json] [--trace BUILD] [--patch FILE ...] [--page docs/extending.md]

Without CHECKOUT, it measures the checkout of this script. The rules:

- Place: a place lists the neuron's scalars (NAMES): at least five different ones within twelve lines, directly inside
  one pair of brackets (a signature, call, tuple, dict or struct) or in statements of one body. Names in a nested pair
  of brackets count for the outer pair only if the nested pair is on one line and is no place itself. Names in strings
  count (schemas, keys), those in comments and docstrings do not. Signatures of public functions count. Lists without
  names, such as ``inputs[6:17]``, are not found.
- Import circle: modules of sewsnn each of which imports, directly or not, all others. Import statements inside
  functions make circles of their own, which are counted separately.
- Arrow upward: a file of csrc that includes a file of a later folder (C_LAYERS), or a module of sewsnn that imports one
  of a later layer (LAYERS). Each pair of file and layer counts once. Modules outside of LAYERS do not count.
- Files that x_seq passes: those in which code runs in one call of ``functional.lif_multistep`` on the CPU, without
  gradients and without the arithmetic in csrc/core and csrc/neurons. ``--trace`` finds them: scripts/passed_files.py
  compiles the library for this in the folder BUILD.
- Lines: those of the source files in csrc and sewsnn; of code: without blank lines, comments and docstrings.
- Files of a patch: those that a unified diff names. ``--page`` counts them for the fenced ``diff`` blocks of a page,
  which are named by the heading before them.
"""

import argparse
import ast
import io
import json
import re
import runpy
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SCALARS = ["kind", "tau", "decay_input", "v_threshold", "v_reset", "surrogate", "alpha", "detach_reset"]
NAMES = {name: name for name in _SCALARS}  # and other names of the same scalars
NAMES |= {"init_tau": "tau", "surrogate_function": "surrogate", "parameter": "alpha", "surrogate_parameter": "alpha"}
LEAST, WINDOW = 5, 12
C_LAYERS = [["core"], ["neurons"], ["kernels"], ["inst"], ["ops"]]
LAYERS = [["errors"], ["ops"], ["surrogate"], ["functional"], ["neuron"], ["layers"], ["models"], ["train"]]
LAYERS += [["cli"]]
_C = re.compile(
    r"""(?P<number>\b\d[\w'.]*)|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/"""
    r"""|(?P<word>\w+)|(?P<bracket>[(){}[\]])|\n""",
    re.DOTALL,
)


# ---- places


def c_tokens(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each bracket and word of C++, also of words in strings."""
    line = 1
    for found in _C.finditer(text):
        if found["string"]:
            yield from ((line, word) for word in re.findall(r"\w+", found[0]))
        elif found["word"] or found["bracket"]:
            yield line, found[0]
        line += found[0].count("\n")


def _statements(text: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of Python without comments, line ends and docstrings."""
    start = True  # of a statement
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if token.type != tokenize.NEWLINE and not (token.type == tokenize.STRING and start):
            yield token
        start = token.type == tokenize.NEWLINE


def python_tokens(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each bracket and word of Python, also of words in strings."""
    for token in _statements(text):
        words = re.findall(r"\w+", token.string) if token.type == tokenize.STRING else [token.string]
        yield from ((token.start[0], word) for word in words)


def _clusters(names: list[tuple[int, str]]) -> tuple[list[int], list[tuple[int, str]]]:
    """The first lines of the places among these names of one pair of brackets, and the names outside of places."""
    places, rest = [], []
    while names:
        near = [name for name in names if name[0] < names[0][0] + WINDOW]
        if len({name for _, name in near}) < LEAST:
            rest.append(names.pop(0))
            continue
        places.append(near[0][0])
        names = names[len(near) :]
    return places, rest


def places(tokens: Iterator[tuple[int, str]]) -> list[int]:
    """The first line of each place in a file."""
    found, open_groups = [], [(1, [])]  # line of the bracket, names directly inside
    for line, token in tokens:
        if token in "([{":
            open_groups.append((line, []))
        elif token in ")]}" and len(open_groups) > 1:
            first, names = open_groups.pop()
            own, rest = _clusters(names)
            found += own
            if first == line and not own:
                open_groups[-1][1].extend(rest)
        elif token in ("def", "class"):  # names of two functions make no place
            found += _clusters(open_groups[-1][1])[0]
            open_groups[-1] = (line, [])
        elif token in NAMES:
            open_groups[-1][1].append((line, NAMES[token]))
    return sorted(found + [line for _, names in open_groups for line in _clusters(names)[0]])


def all_places(checkout: Path, area: str) -> list[str]:
    """The places in a folder of the checkout, as ``file:line``."""
    return [
        f"{path.relative_to(checkout).as_posix()}:{line}"
        for path in _sources(checkout, area)
        for line in places((python_tokens if path.suffix == ".py" else c_tokens)(path.read_text(encoding="utf-8")))
    ]


# ---- dependencies


def imports(checkout: Path) -> list[tuple[str, str, bool]]:
    """The import statements of sewsnn: importing module, imported module, and whether it is in a function."""
    files = {}
    for path in sorted((checkout / "sewsnn").rglob("*.py")):
        parts = path.relative_to(checkout).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = []

    def visit(node, module, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                package = module.split(".")[: None if files[module].name == "__init__.py" else -1]
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                base = ".".join(filter(None, [base, child.module]))
                names = [f"{base}.{alias.name}" for alias in child.names]
                names = [name if name in files else base for name in names]
            found.extend((module, name, inside) for name in dict.fromkeys(names) if name in files)
            visit(child, module, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    for module, path in files.items():
        visit(ast.parse(path.read_text(encoding="utf-8")), module, False)
    return found


def circles(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """The strongly connected components of more than one node."""
    reached = {}
    for start in {a for a, _ in arrows}:
        seen, waiting = set(), [start]
        while waiting:
            node = waiting.pop()
            new = {b for a, b in arrows if a == node} - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {frozenset(b for b in reach if a in reached.get(b, ())) for a, reach in reached.items()}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _layer(layers: list[list[str]], name: str) -> int | None:
    return next((i for i, layer in enumerate(layers) if name in layer), None)


def upward(checkout: Path) -> list[str]:
    """The arrows to a later layer, as ``file -> layer``."""
    arrows = [
        (C_LAYERS, path.relative_to(checkout / "csrc").parts[0], path.relative_to(checkout).as_posix(), name)
        for path in _sources(checkout, "csrc")
        for name in re.findall(r'^#\s*include "(\w+)/', path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    for module, imported, _ in imports(checkout):
        own, other = ([*name.split("."), ""][1] for name in (module, imported))
        arrows.append((LAYERS, own, module, other))
    found = set()
    for layers, own, file, other in arrows:
        below, above = (next((i for i, layer in enumerate(layers) if name in layer), None) for name in (own, other))
        if below is not None and above is not None and above > below:
            found.add(f"{file} -> {other}")
    return sorted(found)


# ---- files and lines


def _sources(checkout: Path, area: str) -> list[Path]:
    endings = (".py", ".h", ".cuh", ".cpp", ".cu")
    return sorted(path for path in (checkout / area).rglob("*.*") if path.suffix in endings)


def lines(path: Path) -> tuple[int, int]:
    """The number of lines of a file, and how many of them contain code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        code = {line for token in _statements(text) for line in range(token.start[0], token.end[0] + 1)}
        return text.count("\n"), len(code)
    code = _C.sub(lambda found: "\n" * found[0].count("\n") if found[0][:2] in ("//", "/*") else found[0], text)
    return text.count("\n"), sum(bool(line.strip()) for line in code.split("\n"))


def files_of(patch: str) -> list[str]:
    """The files that a unified diff changes, creates or deletes."""
    found = re.findall(r"^--- (\S+)[^\n]*\n\+\+\+ (\S+)", patch, re.MULTILINE)
    return sorted({re.sub(r"^[ab]/", "", old if new == "/dev/null" else new) for old, new in found})


def patches_of(page: str) -> dict[str, list[str]]:
    """The files of each fenced ``diff`` block of a page, joined under the heading before it."""
    found, heading = {}, ""
    for part in re.finditer(r"^```(\w*)\n(.*?)^```$|^#+ +([^\n]+)$", page, re.MULTILINE | re.DOTALL):
        heading = part[3] or heading
        if part[1] == "diff":
            found[heading] = sorted({*found.get(heading, []), *files_of(part[2])})
    return found


# ---- the table


def _passed_files(checkout: Path, build: Path) -> list[str]:
    return runpy.run_path(str(Path(__file__).with_name("passed_files.py")))["passed_files"](checkout, build)


def measure(checkout: Path, build: Path | None, patches: dict[str, list[str]]) -> dict[str, list[str] | int | None]:
    """Each measure: a number, the list of what is counted, or None if it was not measured."""
    arrows = imports(checkout)
    at_import = circles([(a, b) for a, b, inside in arrows if not inside])
    everywhere = circles([(a, b) for a, b, _ in arrows])
    counts = [lines(path) for area in ("csrc", "sewsnn") for path in _sources(checkout, area)]
    found = {f"places in {area}": all_places(checkout, area) for area in ("csrc", "sewsnn", "tests/native")}
    found["files that x_seq passes on the CPU"] = _passed_files(checkout, build) if build else None
    found["import circles"] = [" <-> ".join(circle) for circle in at_import]
    found["import circles in functions"] = [" <-> ".join(circle) for circle in everywhere if circle not in at_import]
    found["arrows upward"] = upward(checkout)
    found["lines of csrc and sewsnn"], found["lines of code"] = map(sum, zip(*counts, strict=True))
    return found | {f"files of the patch: {name}": files for name, files in patches.items()}


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", type=Path, metavar="BUILD")
    parser.add_argument("--patch", type=Path, action="append", default=[])
    parser.add_argument("--page", type=Path)
    given = parser.parse_args(arguments)
    patches = {path.name: files_of(path.read_text(encoding="utf-8")) for path in given.patch}
    if given.page:
        patches |= patches_of(given.page.read_text(encoding="utf-8"))
    found = measure(given.checkout.resolve(), given.trace and given.trace.resolve(), patches)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:44}{'not measured' if value is None else value if isinstance(value, int) else len(value):>8}")
    for name, value in found.items():
        if isinstance(value, list) and value:
            print(f"\n{name}:", *value, sep="\n  ")


if __name__ == "__main__":
    main()
