"""Writes programs of torch.export (``.pt2``)."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from sewsnn.errors import UserError
from sewsnn.export.agreement import Run, nodes_of
from sewsnn.layers.plan import by_modules


def trace(network: nn.Module, example: Tensor, dim: int | None, native: bool = False) -> ExportedProgram:
    """Traces the network as a graph, without the source locations that name files of this machine.

    Args:
        network: the prepared network.
        example: its input.
        dim: the dimension whose size stays free; None: none.
        native: keep sewsnn's ops, which stand for several modules. Default False.

    Raises:
        UserError: torch.export cannot trace the network; the message contains torch's reason.
    """
    shapes = None if dim is None else ({dim: torch.export.Dim("batch", min=1)},)
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        plain = contextlib.nullcontext() if native else by_modules()
        with warnings.catch_warnings(), plain:
            warnings.simplefilter("ignore")
            program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many kinds of errors for code that it cannot trace
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"torch.export cannot express {type(network).__name__}: {reason[0]}") from error
    finally:
        log.setLevel(level)
    program.graph.eliminate_dead_code()  # removes the stacked potentials of all time-steps, which nothing reads
    program.graph_module.recompile()
    forget_files(program.graph_module)
    return program


def forget_files(module: fx.GraphModule) -> None:
    """Removes the metadata with the source lines and file names of a graph's operations."""
    for graph_module in module.modules():
        if isinstance(graph_module, fx.GraphModule):
            for node in graph_module.graph.nodes:
                for key in ("stack_trace", "source_fn_stack", "from_node"):
                    node.meta.pop(key, None)


def own_ops(program: ExportedProgram) -> list[str]:
    """The names of sewsnn's ops in the program."""
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return sorted(name for name in names if name.startswith("sewsnn."))


def write(network: nn.Module, example: Tensor, dim: int | None, native: bool) -> tuple[bytes, Callable, str]:
    """The bytes of a file, a function that loads such bytes, and the kind of the file.

    ``load(bytes)`` returns a function of one tensor and the name of the program that runs it.

    Raises:
        UserError: torch.export cannot trace or save the network, or ``native`` does not fit its ops.
    """
    program = trace(network, example, dim, native)
    ops = own_ops(program)
    if ops and not native:
        raise UserError(
            f"{type(network).__name__} uses {', '.join(ops)}, which only a program that imports sewsnn can load: "
            "use native"
        )
    if native and not ops:
        raise UserError("native: the network has none of sewsnn's ops to keep")
    file = io.BytesIO()
    try:
        torch.export.save(program, file)
    except Exception as error:
        raise UserError(f"torch.export cannot save {type(network).__name__}: {str(error).splitlines()[0]}") from error
    needs = "import sewsnn first" if ops else "needs torch alone"
    names = None if ops else [name for name, module in network.named_modules() if module in set(nodes_of(network))]
    return file.getvalue(), lambda data: _load(data, names), f"torch.export of torch {torch.__version__}, {needs}"


def _load(data: bytes, neurons: Iterable[str] | None) -> tuple[Callable[[Tensor], Run], str]:
    """The program in the file as a function that also returns the spikes of the neuron layers at ``neurons``."""
    module = torch.export.load(io.BytesIO(data)).module()
    watched = _Watched(module, None if neurons is None else set(neurons))
    return watched.call, f"torch {torch.__version__}"


class _Watched(fx.Interpreter):
    """Runs a program and collects the spikes of its neuron layers: each stacks the spikes of all its time-steps."""

    def __init__(self, module: fx.GraphModule, neurons: set[str] | None):
        super().__init__(module)
        self.neurons = neurons
        self.spikes: list[Tensor] = []

    def run_node(self, n: fx.Node):
        result = super().run_node(n)
        if self.neurons and n.target is torch.ops.aten.stack.default and _module_of(n) in self.neurons:
            self.spikes.append(result)
        return result

    @torch.no_grad()
    def call(self, x: Tensor) -> Run:
        output = self.module(x)  # with its checks of the input
        self.spikes = []
        if self.neurons is not None:
            output = self.run(x)
        output = output[0] if isinstance(output, tuple) else output
        return Run(output, None if self.neurons is None else self.spikes)


def _module_of(node: fx.Node) -> str | None:
    """The path of the innermost module from which the operation came."""
    stack = node.meta.get("nn_module_stack")
    return list(stack.values())[-1][0] if stack else None
