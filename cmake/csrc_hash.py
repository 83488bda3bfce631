"""Computes hashes of code, which tell with which code a result was measured. Comments and white space do not count.

python cmake/csrc_hash.py          prints the hash of csrc, which setup.py compiles into the library
"""

import ast
import hashlib
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# Numbers come first, because the quote in 1'000 does not begin a character. Strings come before comments, because a
# string may contain "//".
_TOKENS = re.compile(
    r"""\b\d[\w'.]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>//[^\n]*|/\*.*?\*/)""", re.DOTALL
)
_INCLUDE = re.compile(r'^#\s*include "([^"]+)"', re.MULTILINE)
_OPTIONS = re.compile(r"(?<![\w-])--?(?:f|m|O|std|arch|gencode|use_fast|no-|D[A-Z]|Wno-psabi)[\w=.,-]*")


def code_of(text: str) -> str:
    """Returns C++ without comments: each preprocessor directive on its own line, all other white space as one space."""
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
    """Returns Python without comments, docstrings and blank lines. The result does not depend on Python's version."""
    lines = text.splitlines()

    def cut(begin: tuple[int, int], end: tuple[int, int]) -> None:
        (first, column), (last, end_column) = begin, end
        tail = lines[last - 1].encode()[end_column:].decode()
        lines[first - 1] = lines[first - 1].encode()[:column].decode() + tail
        lines[first:last] = [""] * (last - first)

    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            cut((value.lineno, value.col_offset), (value.end_lineno, value.end_col_offset))
    return "\n".join(line.rstrip() for line in lines if line.strip())


def with_includes(sources: list[Path]) -> list[Path]:
    """Returns these files of csrc and all files that they include directly or indirectly, sorted."""
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
    """Returns the options in CMakeLists.txt and cmake/cuda.cmake that affect the machine code."""
    text = "".join(
        re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
        for path in (ROOT / "CMakeLists.txt", ROOT / "cmake" / "cuda.cmake")
    )
    return " ".join(_OPTIONS.findall(text))


def hash_of(*parts: str) -> str:
    """Returns a hash of the parts: twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()[:12]


def sources_hash(patterns: list[str]) -> str:
    """Returns the hash of the code that belongs to these files.

    C++ and CUDA files count with all files that they include and with the compiler options. Python modules count alone.

    Args:
        patterns: file patterns relative to csrc (``ops/neuron.cpp``, ``inst/bn_*.cu``), or for Python modules relative
            to the repository (``sewsnn/ops/neuron.py``).

    Raises:
        FileNotFoundError: no file matches a pattern.
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
    """Returns the hash of all code of csrc."""
    parts = []
    for path in sorted(CSRC.rglob("*.*")):
        parts += [path.relative_to(ROOT).as_posix(), code_of(path.read_text(encoding="utf-8"))]
    return hash_of(*parts)


if __name__ == "__main__":
    print(csrc_hash())
