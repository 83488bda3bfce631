"""Reads what cuobjdump prints about a file of machine code."""

import re
from collections import Counter

THREADS, REGISTERS_PER_SM = 128, 1 << 16  # kThreads of multistep.cuh
RESERVED_SHARED = 1024  # bytes that the system reserves in each kernel with shared memory, since sm_90
COUNTED = ("LDL", "STL", "LDS", "STS", "BAR", "SHFL", "MUFU", "FFMA", "DFMA", "CALL")
# an instruction of cuobjdump -sass: the opcode, and the upper half of the 128 bits in the next line
ENCODED = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)[^\n]*\n\s*/\* 0x([0-9a-f]{16}) \*/")


def resources(usage: str, arch: int) -> dict[str, dict]:
    """Reads the output of `cuobjdump -res-usage`: mangled name -> resources, without the shared memory that the system
    reserves."""
    found = {}
    for name, line in re.findall(r"^ Function (\S+):\n(.*)$", usage, re.MULTILINE):
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        if len(used) != 3:
            raise SystemExit(f"cannot read what cuobjdump says about {name}:\n{line}")
        blocks = REGISTERS_PER_SM // (-(-used["REG"] // 8) * 8 * THREADS)
        if arch >= 90 and used["SHARED"] >= RESERVED_SHARED:
            used["SHARED"] -= RESERVED_SHARED
        found[name] = {"registers": used["REG"], "blocks": blocks, "stack": used["STACK"], "shared": used["SHARED"]}
    return found


def bits(opcode: str) -> int:
    """Returns the number of bits that one LDG, STG, LD or ST moves."""
    match = re.search(r"\.[US]?(8|16|64|128|256)(?:\.|$)", opcode)
    return int(match.group(1)) if match else 32


def loads_ahead(encoded: list[tuple[str, int]]) -> int:
    """Returns the largest number of loads from global memory that are in flight when the kernel waits for one of them.

    The function reads the instructions from top to bottom. ``encoded`` has the opcode of each and the upper half of its
    128 bits, which ends with the control bits: bits 110 to 112 name the scoreboard that the instruction will clear, and
    bits 116 to 121 are a mask of the scoreboards that it waits for.
    """
    most, under_way = 0, [0] * 8
    for opcode, upper in encoded:
        control = upper >> 46
        waits = [board for board in range(6) if control >> 6 >> board & 1] if control >> 6 & 63 else ()
        if any(under_way[board] for board in waits):
            most = max(most, sum(under_way))
            for board in waits:
                under_way[board] = 0
        if opcode.startswith("LDG"):
            under_way[control & 7] += 1
    return most


def mean_stall(encoded: list[tuple[str, int]]) -> float:
    """Returns the mean number of cycles that the scheduler waits after an instruction before it issues the next one of
    the same warp: bits 105 to 108 of the 128 bits. NOPs, which only fill the end of a kernel, do not count."""
    counts = [upper >> 41 & 15 for opcode, upper in encoded if opcode != "NOP"]
    return sum(counts) / len(counts)


def instructions(disassembly: str) -> dict[str, dict]:
    """Reads the output of `cuobjdump -sass`: mangled name -> counts of instructions."""
    found = {}
    for part in disassembly.split("\t\tFunction : ")[1:]:
        name, _, body = part.partition("\n")
        encoded = [(opcode, int(upper, 16)) for opcode, upper in ENCODED.findall(body)]
        opcodes = [opcode for opcode, _ in encoded]
        if not opcodes:
            raise SystemExit(f"cannot read the disassembly of {name}")
        row = {kind: {} for kind in ("LDG", "STG", "LD", "ST")}
        for opcode, count in Counter(opcodes).items():
            if (kind := opcode.split(".")[0]) in row:
                row[kind][bits(opcode)] = row[kind].get(bits(opcode), 0) + count
        kinds = Counter(opcode.split(".")[0] for opcode in opcodes)
        kinds["FFMA"] += 2 * kinds["FFMA2"]
        found[name] = {kind: {str(b): n for b, n in sorted(row[kind].items(), reverse=True)} for kind in row}
        found[name] |= {kind: kinds[kind] for kind in COUNTED}
        found[name]["ahead"] = loads_ahead(encoded)
        found[name]["stall"] = round(mean_stall(encoded), 2)
        found[name] |= {"instructions": len(opcodes) - kinds["NOP"], "code_bytes": 16 * len(opcodes)}
    return found
