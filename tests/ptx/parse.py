"""Reads the text of a PTX file: kernels with their parameters, variables and instructions."""

import re
from dataclasses import dataclass, field

BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


class PtxError(Exception):
    """The text has something that this program does not know."""


@dataclass
class Variable:
    """Memory that has a name: a parameter, or shared or local memory."""

    name: str
    align: int
    bytes: int


@dataclass
class Statement:
    """One instruction, for example ``@!%p1 add.rn.f32 %f1, %f2, %f3;``."""

    opcode: str
    operands: list[str]
    guard: str | None = None
    negated: bool = False
    text: str = ""


@dataclass
class Kernel:
    """An entry of a PTX file."""

    name: str
    parameters: list[Variable]
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the place of the statement that follows


_VARIABLE = re.compile(r"(?:\.align (\d+) )?\.[a-z](\d+)\s+([\w$]+)(?:\[(\d*)\])?$")
_ENTRY = re.compile(r"\.entry ([\w$]+)\(([^)]*)\)([^{]*)\{")
_SHARED = re.compile(r"^(?:\.visible |\.weak )*(?:\.extern )?\.shared ([^;]*);", re.MULTILINE)
# What a body consists of.
_PIECE = re.compile(
    r"""\s*(?: (?P<label>[\w$]+):
             | (?P<brace>[{}])
             | \.(?P<directive>[a-z]+)(?P<rest>[^;\n]*)[;\n]
             | (?P<instruction>[@a-z][^;]*); )""",
    re.VERBOSE,
)


def variable(text: str) -> Variable:
    """Reads a declaration such as ``.align 8 .b8 warps[32]``."""
    match = _VARIABLE.search(text.strip())
    if not match:
        raise PtxError(f"cannot read the declaration {text.strip()!r}")
    align, bits, name, count = match.groups()
    size = BYTES[bits]
    return Variable(name, int(align or size), size * int(count or 1))


def split_operands(text: str) -> list[str]:
    """Splits at commas, but not inside of braces or brackets."""
    found, depth, start = [], 0, 0
    for at, c in enumerate(text):
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def statement(text: str) -> Statement:
    text = " ".join(text.split())
    guard, negated, rest = None, False, text
    if text.startswith("@"):
        guard, rest = text[1:].split(" ", 1)
        negated, guard = guard.startswith("!"), guard.lstrip("!")
    opcode, _, operands = rest.partition(" ")
    return Statement(opcode, split_operands(operands), guard, negated, text)


def _body(kernel: Kernel, text: str, at: int) -> None:
    """Reads from behind the opening brace of a kernel up to its end."""
    depth, scopes, renamed = 1, 0, [{}]
    while depth:
        piece = _PIECE.match(text, at)
        if not piece:
            raise PtxError(f"{kernel.name}: cannot read {text[at : at + 100]!r}")
        at = piece.end()
        if piece["brace"] == "{":
            depth, scopes = depth + 1, scopes + 1
            renamed.append({})
        elif piece["brace"] == "}":
            depth -= 1
            renamed.pop()
        elif piece["label"]:
            kernel.labels[piece["label"]] = len(kernel.statements)
        elif piece["directive"]:
            _declare(kernel, piece["directive"], piece["rest"], renamed[-1] if depth > 1 else None, scopes)
        else:
            source = piece["instruction"]
            for names in renamed[1:]:
                for name, own in names.items():
                    source = re.sub(rf"(?<![\w$%]){re.escape(name)}(?![\w$])", own, source)
            kernel.statements.append(statement(source))


def _declare(kernel: Kernel, directive: str, rest: str, names: dict | None, scope: int) -> None:
    if directive in ("shared", "local"):
        getattr(kernel, directive).append(variable(rest))
    elif directive == "reg" and names is not None:  # registers of an inline assembly's own scope
        names.update({n: f"{n}@{scope}" for n in (word.strip() for word in rest.split(None, 1)[1].split(","))})
    elif directive not in ("reg", "pragma", "loc", "file"):
        raise PtxError(f"{kernel.name}: unknown directive .{directive}{rest}")


def kernels(text: str) -> dict[str, Kernel]:
    """Returns the kernels of a PTX file by their mangled names."""
    text = re.sub(r"//[^\n]*", "", text)
    shared = [variable(declared) for declared in _SHARED.findall(text)]
    found = {}
    for entry in _ENTRY.finditer(text):
        name, parameters, _ = entry.groups()
        kernel = Kernel(name, [variable(p) for p in parameters.split(",") if p.strip()])
        _body(kernel, text, entry.end())
        used = set(re.findall(r"[\w$]+", " ".join(o for s in kernel.statements for o in s.operands)))
        kernel.shared += [v for v in shared if v.name in used]
        found[name] = kernel
    return found
