"""Hashes that say which code a result was measured with. Comments and white space do not change them.

python cmake/csrc_hash.py          the hash of csrc; setup.py compiles it into the library
"""

import ast
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
# Numbers come first: the quotes in 1'000 begin no character. Strings before comments: they may hold "//".
_TOKENS = re.compile(
    r"""\b\d[\w'.]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>//[^\n]*|/\*.*?\*/)""", re.DOTALL
)
_INCLUDE = re.compile(r'^#\s*include "([^"]+)"', re.MULTILINE)
_OPTIONS = re.compile(r"(?<![\w-])--?(?:f|m|O|std|arch|gencode|use_fast|no-|D[A-Z]|Wno-psabi)[\w=.,-]*")


def code_of(text: str) -> str:
    """C++ without comments: a line for each preprocessor directive, one space for all other white space."""
    text = re.sub(r"\\\r?\n", " ", text.replace("\r\n", "\n"))
    text = _TOKENS.sub(lambda found: " " if found["comment"] else found[0], text)
    lines = []
    for line in (" ".join(part.split()) for part in text.split("\n")):
        if not line:
            continue
        if lines and not line.startswith("#") and not lines[-1].startswith("#"):
            lines[-1] += " " + line
        else:
            lines.append(line)
    return "\n".join(lines)


def python_of(text: str) -> str:
    """Python's syntax tree without docstrings; comments are not in it."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        docstring = getattr(first, "value", None) if isinstance(first, ast.Expr) else None
        if isinstance(docstring, ast.Constant) and isinstance(docstring.value, str):
            docstring.value = ""
    return ast.dump(tree)


def with_includes(sources: list[Path]) -> list[Path]:
    """The files of csrc that these compile: themselves, and what they include directly or indirectly, sorted."""
    found, waiting = set(), list(sources)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(code_of(path.read_text(encoding="utf-8"))):
            for folder in (path.parent, CSRC):
                if (included := (folder / name).resolve()).is_file():
                    waiting.append(included)
                    break
    return sorted(found)


def compiler_options() -> str:
    """The options of CMakeLists.txt and cmake/cuda.cmake that change what the compilers make of a source."""
    text = "".join(
        re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
        for path in (ROOT / "CMakeLists.txt", ROOT / "cmake" / "cuda.cmake")
    )
    return " ".join(_OPTIONS.findall(text))


def hash_of(*parts: str) -> str:
    """Twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()[:12]


def sources_hash(patterns: list[str]) -> str:
    """The hash of what these files compile: patterns of files of csrc, with all that they include and the compilers'
    options, and of Python modules of the repository ("sewsnn/ops/neuron.py").

    Raises:
        FileNotFoundError: there is no file of one of these names.
    """
    parts = []
    for folder, suffixes in ((CSRC, (".cpp", ".cu", ".h", ".cuh")), (ROOT, (".py",))):
        chosen = [pattern for pattern in patterns if pattern.endswith(suffixes)]
        paths = []
        for pattern in chosen:
            found = sorted(folder.glob(pattern))
            if not found:
                raise FileNotFoundError(f"there is no {pattern} in {folder}")
            paths += found
        if folder == CSRC and paths:
            paths = with_includes(paths)
            parts.append(compiler_options())
        read = code_of if folder == CSRC else python_of
        for path in paths:
            parts += [path.relative_to(ROOT).as_posix(), read(path.read_text(encoding="utf-8"))]
    return hash_of(*parts)


def csrc_hash() -> str:
    """The hash of all code of csrc."""
    parts = []
    for path in sorted(CSRC.rglob("*.*")):
        parts += [path.relative_to(ROOT).as_posix(), code_of(path.read_text(encoding="utf-8"))]
    return hash_of(*parts)


if __name__ == "__main__":
    print(csrc_hash())
