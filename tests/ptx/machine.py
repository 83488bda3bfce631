"""Executes kernels as nvcc's PTX in the host module (tests/native), instead of what the C++ compiler made of them."""

from contextlib import contextmanager
from dataclasses import dataclass

import host
import numpy as np
from assemble import Assembler, Program
from nvcc import Listing
from parse import Kernel, Statement


@dataclass
class Executed:
    """How often a kernel's statements were executed: ``reached[i]`` threads came to statement i."""

    kernel: Kernel
    threads: int
    reached: np.ndarray

    @property
    def instructions(self) -> int:
        return int(self.reached.sum())

    def by_opcode(self) -> dict[str, int]:
        """Returns the executed instructions of each opcode, most first."""
        found: dict[str, int] = {}
        for s, n in zip(self.kernel.statements, self.reached.tolist(), strict=True):
            found[s.opcode] = found.get(s.opcode, 0) + n
        return dict(sorted(((k, n) for k, n in found.items() if n), key=lambda item: -item[1]))

    def listing(self) -> str:
        """Returns the kernel's text with the number of threads that came to each statement."""
        at = {}
        for label, place in self.kernel.labels.items():
            at.setdefault(place, []).append(f"{label}:")
        lines = []
        for i, (s, n) in enumerate(zip(self.kernel.statements, self.reached.tolist(), strict=True)):
            lines += at.get(i, [])
            lines.append(f"{n:10d}  {s.text}")
        return "\n".join(lines) + "\n"


class Machine:
    """``edit`` may change the statements of a kernel before they are assembled."""

    def __init__(self, listing: Listing, edit=None):
        self.listing, self.edit = listing, edit
        self.programs: dict[str, Program] = {}

    def assemble(self, name: str) -> dict:
        if name not in self.programs:
            kernel = self.listing.kernel(name)
            if self.edit is not None:
                kernel = Kernel(**(vars(kernel) | {"statements": self.edit(kernel)}))
            module = host.module()
            operations = {operation: i for i, operation in enumerate(module.ptx_operations())}
            self.programs[name] = Assembler(kernel, operations, module.ptx_bases).program()
        return self.programs[name].given()

    def executed(self) -> dict[str, Executed]:
        """Returns what the launches since :meth:`run` executed, by kernel."""
        found = host.module().ptx_executed().items()
        return {name: Executed(self.programs[name].kernel, threads, reached) for name, (threads, reached) in found}

    @contextmanager
    def run(self, every: int = 1):
        """Inside, every launch executes PTX. A kernel that no PTX file has is an error. ``every``: execute only every
        n-th block, to count instructions; results are then incomplete."""
        host.module().ptx_execute(self.assemble, every)
        try:
            yield self
        finally:
            host.module().ptx_execute(None)


def replaced(statements: list[Statement], change) -> list[Statement]:
    """Returns the statements; ``change`` returns another one, or None to keep one."""
    return [change(s) or s for s in statements]
