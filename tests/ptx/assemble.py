"""Turns a kernel of a PTX file into the numbers that machine.cpp executes."""

import re
from dataclasses import dataclass

import numpy as np
from parse import BYTES, Kernel, PtxError, Statement, Variable

SPECIAL = [f"%{group}.{axis}" for group in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["%laneid"]
GARBAGE = 0x7FF4DEADFFA5DEAD  # in registers: NaN as a double and as a float
ALWAYS = 0xFFFF
# Words of an opcode that change nothing for a machine whose memory is always in order.
MEMORY_WORDS = {"relaxed", "acquire", "release", "acq_rel", "weak", "volatile", "cta", "gpu", "sys", "cluster"}
MEMORY_WORDS |= {"ca", "cg", "cs", "lu", "cv", "wb", "wt"}
NOTHING = ("membar", "fence", "prefetch", "discard", "nanosleep", "griddepcontrol.launch_dependents")


@dataclass
class Program:
    """``code`` has one row per statement: operation, six slots, guard, negated, bytes, count, signed, offset."""

    kernel: Kernel
    code: np.ndarray
    slots: np.ndarray
    parameters: list[tuple[int, int]]
    shared_bytes: int
    local_bytes: int

    def given(self) -> dict:
        """Returns what ``ptx_execute`` takes."""
        names = ("code", "slots", "parameters", "shared_bytes", "local_bytes")
        return {name: getattr(self, name) for name in names}


def places(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Returns the offset of each variable, and the bytes of all."""
    at, found = 0, {}
    for v in variables:
        at = -(-at // v.align) * v.align
        found[v.name] = at
        at += v.bytes
    return found, at


class Assembler:
    """``operations``: the names that the machine knows, in its order; ``bases``: where each memory begins."""

    def __init__(self, kernel: Kernel, operations: dict[str, int], bases: dict[str, int]):
        self.kernel, self.operations = kernel, operations
        self.slots: dict[str | int, int] = {name: i for i, name in enumerate(SPECIAL)}
        self.offsets, self.symbols, self.bytes = {}, {}, {}
        for space, variables in (("param", kernel.parameters), ("shared", kernel.shared), ("local", kernel.local)):
            self.offsets[space], self.bytes[space] = places(variables)
            self.symbols |= {name: bases[space] + at for name, at in self.offsets[space].items()}

    def constant(self, text: str) -> int | None:
        """Returns the 64 bits of a number or of a variable's address, or None if the text is neither."""
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            return int(match[1], 16)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return int(text.rstrip("U"), 0) & 0xFFFFFFFFFFFFFFFF
        return self.symbols.get(text)

    def slot(self, text: str) -> int:
        """Returns the slot of a register or a constant."""
        value = self.constant(text)
        if value is None and not re.fullmatch(r"[%_]?[\w$.@]+", text):
            raise PtxError(f"cannot read the operand {text!r}")
        if value is None and text.startswith("%") and "." in text and text not in self.slots:
            raise PtxError(f"unknown special register {text}")
        return self.slots.setdefault(text if value is None else value, len(self.slots))

    def address(self, text: str) -> tuple[int, int]:
        """Reads ``[%rd1+16]`` as a slot and an offset."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not match:
            raise PtxError(f"cannot read the address {text!r}")
        return self.slot(match[1]), int(match[2] or "0", 0)

    def operation(self, name: str) -> int:
        if name not in self.operations:
            raise PtxError(f"unknown operation {name}")
        return self.operations[name]

    def tuple(self, text: str) -> list[int]:
        return [self.slot(part.strip()) for part in text.strip("{} ").split(",")]

    def memory(self, words: list[str], operands: list[str]) -> list[int]:
        """ld, st, atom and red."""
        words = [w for w in words if w not in MEMORY_WORDS and not w.startswith(("L1::", "L2::"))]
        kind, type_ = words[0], words[-1]
        count = int(words[-2][1:]) if words[-2] in ("v2", "v4", "v8") else 1
        name = ".".join(words[: -2 if count > 1 else -1])
        size = BYTES[type_[1:]]
        x = [0] * 6
        if kind in ("atom", "red"):
            spaces = [w for w in words[1:-1] if w not in ("global", "shared")]
            result = operands.pop(0) if kind == "atom" else "_"
            x[0], (x[4], offset) = self.slot(result), self.address(operands[0])
            x[1:3] = [*(self.slot(o) for o in operands[1:]), 0, 0][:2]
            return [self.operation(".".join(["atom", *spaces, type_])), *x, size, 1, 0, offset]
        values, where = operands if kind == "ld" else operands[::-1]
        values = self.tuple(values)
        if len(values) != count:
            raise PtxError(f"{len(values)} registers for {count} numbers")
        x[: len(values)] = values
        x[4], offset = self.address(where)
        return [self.operation(name), *x, size, count, int(type_[0] == "s"), offset]

    def row(self, s: Statement) -> list[int]:
        """Returns operation, slots, bytes, count, signed, offset."""
        words, operands = s.opcode.split("."), list(s.operands)
        plain = lambda name, slots: [self.operation(name), *[*slots, 0, 0, 0, 0, 0, 0][:6], 0, 0, 0, 0]  # noqa: E731
        if words[0] in ("ld", "st", "atom", "red"):
            return self.memory(words, operands)
        if words[0] in NOTHING or s.opcode in NOTHING:
            return plain("nothing", [])
        if words[0] == "bra":
            if operands[0] not in self.kernel.labels:
                raise PtxError(f"no label {operands[0]}")
            return [*plain("bra", [])[:-1], self.kernel.labels[operands[0]]]
        if words[0] == "mov" and "{" in s.text:
            whole, parts = (0, 1) if operands[1].startswith("{") else (1, 0)
            slots = self.tuple(operands[parts])
            size = BYTES[words[1][1:]] // len(slots)
            name = "pack" if parts else "unpack"
            return [self.operation(name), *[self.slot(operands[whole]), *slots, 0, 0, 0, 0][:6], size, len(slots), 0, 0]
        if words[0] == "shfl":
            results = [*operands[0].split("|"), "_"][:2]
            slots = [results[0], *operands[1:4], operands[4], results[1]]
            return plain(s.opcode, map(self.slot, slots))
        return plain({"exit": "ret", "bra.uni": "bra"}.get(s.opcode, s.opcode), [self.slot(o) for o in operands])

    def program(self) -> Program:
        """Assembles all statements.

        Raises:
            PtxError: names the kernel and the statement with an operation that the machine does not know.
        """
        rows = []
        for s in self.kernel.statements:
            try:
                operation, *x, size, count, signed, offset = self.row(s)
                guard = ALWAYS if s.guard is None else self.slot(s.guard)
            except PtxError as e:
                raise PtxError(f"{e} in {s.text!r} of {self.kernel.name}") from None
            rows.append([operation, *x, guard, int(s.negated), size, count, signed, offset])
        if len(self.slots) >= ALWAYS:
            raise PtxError(f"{self.kernel.name} has more than {ALWAYS} registers and constants")
        slots = np.array([GARBAGE if isinstance(key, str) else key for key in self.slots], np.uint64)
        parameters = [(self.offsets["param"][p.name], p.bytes) for p in self.kernel.parameters]
        code = np.array(rows, np.int32)
        return Program(self.kernel, code, slots, parameters, self.bytes["shared"], self.bytes["local"])
