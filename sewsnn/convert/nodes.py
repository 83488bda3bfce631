"""The classes to which :func:`sewsnn.convert.from_spikingjelly` swaps SpikingJelly's neurons. Imports SpikingJelly.

Each class derives from SpikingJelly's node and from sewsnn's. SpikingJelly's node keeps the state (``v``, ``c`` and
``v_seq``, reset, memories, step mode); sewsnn's node computes a call. A call reads each setting when it needs it, so a
script may change settings at any time. If sewsnn has no kernel for a setting (sewsnn/convert/obstacles.py),
SpikingJelly's own forward runs.
"""

import torch
from spikingjelly.activation_based import neuron as theirs
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sewsnn import functional, neuron
from sewsnn.convert import surrogates
from sewsnn.convert.obstacles import obstacle, patched
from sewsnn.convert.state import STATE_FOLLOWS_INPUT, SharedState
from sewsnn.layers.plan import has_hooks
from sewsnn.neuron.state import StatefulNode
from sewsnn.ops.checks import DTYPES
from sewsnn.ops.neuron import V_FINAL, V_SEQUENCE
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec


def why_not(module: nn.Module) -> str | None:
    """Why a neuron of SpikingJelly is not converted; None if it is, or if the module is no such neuron."""
    kind = type(module)
    if kind in CLASSES:
        method = patched(module)
        return obstacle(module) if method is None else f"its method {method} was replaced"
    if isinstance(module, tuple(CLASSES)):
        return "its class derives from a SpikingJelly node and may compute something else"
    if isinstance(module, theirs.BaseNode) or (
        kind.__module__.startswith(theirs.__name__) and kind.__name__.endswith("Node")
    ):
        return "sewsnn has no such neuron"
    place = kind.__module__.split(".")
    old = "clock_driven" in place and place[-1].startswith("neuron") and kind.__name__.endswith("Node")
    if old or (kind.__name__.startswith("MultiStep") and hasattr(module, "v")):
        return "it belongs to an old SpikingJelly: build the model with spikingjelly.activation_based first"
    return None


def why_alone_now(node: nn.Module) -> str:
    """Why a node that could run in one op with its norm runs alone with its current settings; empty if it does not."""
    if node.step_mode != "m":
        return f"step_mode is {node.step_mode!r}"
    if node.store_v_seq:
        return "store_v_seq is set"
    if state := node._not_at_rest():
        return f"{state} is not at rest: call reset_net"
    return "it has hooks" if has_hooks(node) else ""


def operators_are_watched() -> bool:
    """Returns whether a mode that observes torch's operators is active, for example an operator counter.

    Such a mode (SpikingJelly and torch have some) knows SpikingJelly's operators, but not sewsnn's. Tracers have modes
    of their own and do not count.
    """
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(not mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack())


def as_stacked(x_seq: Tensor) -> Tensor:
    """x_seq in the memory order of spikes from ``torch.stack`` in SpikingJelly, so that ``view`` works as there.

    That is contiguous, or each time-step of an image or a volume in channels_last.
    """
    channels_last = x_seq.dim() in (5, 6) and x_seq.movedim(2, -1).is_contiguous()
    return x_seq if channels_last else x_seq.contiguous()


class _Bridge(SharedState):
    """The code that the node classes share. It is never constructed: the class of an existing node is swapped."""

    wanted_backend = "auto"  # node.backend is SpikingJelly's
    may_fuse = True  # False for a node in more than one place of the model: each call continues from the last one's v

    # ---- a call

    def forward(self, x: Tensor) -> Tensor:
        """Computes the spikes of x: ``[T, N, ...]``, or ``[N, ...]`` in single-step mode; sets the state."""
        eager = not torch.compiler.is_compiling()
        if eager:
            self._check_repetition(*self._state())
        if obstacle(self) is not None or x.dtype not in DTYPES or (eager and operators_are_watched()):
            s = super(StatefulNode, self).forward(x)
            if eager:
                self._remember(*self._state())
            return s
        single = self.step_mode == "s"
        sequence = self.store_v_seq and not single
        x_seq = x.unsqueeze(0) if single else as_stacked(x)
        s_seq, state = functional.multistep(
            x_seq,
            self._initial_state(x_seq),
            self.spec(),
            self.learnt_parameters(state_dtype(x_seq.dtype)),
            v_mode=V_SEQUENCE if sequence else V_FINAL,
            backend=self.wanted_backend,
        )
        self._leave(state, sequence)
        if STATE_FOLLOWS_INPUT and single and self.store_v_seq:
            self._append_v_seq(self.v)
        if eager:
            self._remember(*self._state())
        return s_seq.squeeze(0) if single else s_seq

    def spec(self) -> NeuronSpec:
        # A script may change settings at any time, so each call compares their values with those of the last one.
        if torch.compiler.is_compiling():
            return self._new_spec()
        function, constants = self.surrogate_function, self._constants()
        fire = (type(function), surrogates.numbers_of(function))
        values = (fire, self.v_reset, self.detach_reset, constants)
        kept, spec = self.__dict__.get("_spec") or (None, None)
        if kept != values:
            spec = self._new_spec()
            self.__dict__["_spec"] = (values, spec)
        return spec

    def _new_spec(self) -> NeuronSpec:
        return NeuronSpec(
            self.kind,
            surrogates.ours(self.surrogate_function),
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            **self._constants(),
        )

    # ---- a call inside an op of several layers

    def can_be_fused(self) -> bool:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return False  # a compiled graph could not raise the error of _LostGraph
        if not torch.compiler.is_compiling():
            self._check_repetition(*self._state())
            if operators_are_watched():
                return False
        plain = self.may_fuse and self.step_mode == "m" and not self.store_v_seq
        return plain and not self._not_at_rest() and obstacle(self) is None

    def extra_repr(self) -> str:
        return super(StatefulNode, self).extra_repr()


class IFNode(_Bridge, neuron.IFNode, theirs.IFNode):
    """SpikingJelly's IFNode, computed by sewsnn."""


class LIFNode(_Bridge, neuron.LIFNode, theirs.LIFNode):
    """SpikingJelly's LIFNode, computed by sewsnn."""


class ParametricLIFNode(_Bridge, neuron.ParametricLIFNode, theirs.ParametricLIFNode):
    """SpikingJelly's ParametricLIFNode, computed by sewsnn."""

    tau_grad = "full"


class QIFNode(_Bridge, neuron.QIFNode, theirs.QIFNode):
    """SpikingJelly's QIFNode, computed by sewsnn."""


#: the classes that are swapped, by exact type
CLASSES: dict[type, type] = {
    theirs.IFNode: IFNode,
    theirs.LIFNode: LIFNode,
    theirs.ParametricLIFNode: ParametricLIFNode,
    theirs.QIFNode: QIFNode,
}

if hasattr(theirs, "CUBALIFNode"):  # 0.0.0.0.14 lacks it

    class CUBALIFNode(_Bridge, neuron.CUBALIFNode, theirs.CUBALIFNode):
        """SpikingJelly's CUBALIFNode, computed by sewsnn."""

        def extra_repr(self):
            return f"{super().extra_repr()}, c_decay={self.c_decay}, v_decay={self.v_decay}"  # SpikingJelly omits them

    CLASSES[theirs.CUBALIFNode] = CUBALIFNode

if hasattr(theirs, "ILIFNode"):

    class ILIFNode(_Bridge, neuron.ILIFNode, theirs.ILIFNode):
        """SpikingJelly's ILIFNode, computed by sewsnn."""

        def _extra(self):
            return *surrogates.numbers_of(self.surrogate_function), 1  # D and the window

    CLASSES[theirs.ILIFNode] = ILIFNode
