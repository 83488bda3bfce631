"""The code that all converted nodes share, whatever part and version of SpikingJelly they come from.

A converted class derives from SpikingJelly's node and from sewsnn's. SpikingJelly's node keeps the state (``v``, ``c``
and ``v_seq``, reset, memories, step mode); sewsnn's node computes a call. A call reads each setting when it needs it,
so a script may change settings at any time. If sewsnn has no kernel for a setting (convert/obstacles.py),
SpikingJelly's own forward runs.
"""

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sewsnn import functional, neuron
from sewsnn.convert import surrogates
from sewsnn.convert.deferred import Deferred
from sewsnn.convert.joined import as_stacked, joined
from sewsnn.convert.observed import operators_are_observed
from sewsnn.convert.obstacles import SOME, obstacle
from sewsnn.convert.state import SharedState
from sewsnn.layers.plan import has_hooks
from sewsnn.neuron.state import StatefulNode
from sewsnn.ops.checks import DTYPES
from sewsnn.ops.neuron import V_FINAL, V_SEQUENCE
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec

_KINDS = {
    neuron.IFNode: "IF",
    neuron.LIFNode: "LIF",
    neuron.ParametricLIFNode: "PLIF",
    neuron.QIFNode: "QIF",
    neuron.CUBALIFNode: "CUBALIF",
    neuron.ILIFNode: "ILIF",
}
#: attributes of SpikingJelly's nodes that decide what a node computes: of every node, (SOME) of some, of some versions
_EVERY = ("v_threshold", "v_reset", "detach_reset")
_OPTIONAL = ("decay_input", "_neuron_precision", "monitor", "backend", "_backend")
_PLAIN = (float, int, bool, str, type(None))


class Bridge(SharedState):
    """The base class of converted nodes. It is never constructed: the class of an existing node is swapped."""

    wanted_backend = "auto"  # node.backend is SpikingJelly's
    may_fuse = True  # False for a node in more than one place of the model: each call continues from the last one's v
    kind_name: ClassVar[str]  #: the neuron's name in :data:`sewsnn.ops.reference.NEURONS`
    rebuild: ClassVar[Callable]  #: makes a node from its class before the conversion; set by convert/classes.py
    _theirs: type  # the class before the conversion

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.kind_name = next((name for kind, name in _KINDS.items() if issubclass(cls, kind)), "")

    # ---- a call

    def forward(self, x: Tensor) -> Tensor:
        """Computes the spikes of x: ``[T, N, ...]``, or ``[N, ...]`` in single-step mode; sets the state."""
        eager = not torch.compiler.is_compiling()
        if eager:
            self._check_repetition(*self._state())
            if type(x) is Deferred:
                s_seq = joined(x, self)
                if isinstance(s_seq, Tensor):
                    self.count_call(
                        x.source.call.norm.place
                        + (", shortcut added before the neuron" if x.shortcut is not None else "")
                    )
                    return s_seq
                self.count_call("", s_seq)
                x = x.value()
            else:
                self.count_call("", "its input is not the result of a batch norm that sewsnn knows")
        spec = self.spec_or_reason()
        if isinstance(spec, str) or x.dtype not in DTYPES or (eager and operators_are_observed()):
            s = super(StatefulNode, self).forward(x)
            if eager:
                self._remember(*self._state())
            return s
        single = self.step_mode == "s"
        sequence = self.store_v_seq and not single
        x_seq = x.unsqueeze(0) if single else as_stacked(x)
        before = self._initial_state(x_seq)
        s_seq, state = functional.multistep(
            x_seq,
            before,
            spec,
            self.learnt_parameters(state_dtype(x_seq.dtype)),
            v_mode=V_SEQUENCE if sequence else V_FINAL,
            backend=self.wanted_backend,
        )
        self._leave(state, sequence)
        if self.state_follows_input and single and self.store_v_seq:
            self._append_v_seq(self.v)
        if eager:
            self._remember(*self._state())
        s = s_seq.squeeze(0) if single else s_seq
        self._note_call(s, x_seq, before)
        return s

    def _note_call(self, s: Tensor, x_seq: Tensor, before: Tensor | None) -> None:
        """What else SpikingJelly's node stores after a call."""

    def note_joined_call(self, s: Tensor, y_seq: Callable, spec: NeuronSpec, learnt: Tensor | None) -> None:
        """The same after a call in one op with batch norm; ``y_seq()`` computes the input of the node."""

    def spec(self) -> NeuronSpec:
        # A node that sewsnn cannot compute has no specification; callers ask spec_or_reason() first.
        found = self.spec_or_reason()
        return self._new_spec() if isinstance(found, str) else found

    def spec_or_reason(self) -> NeuronSpec | str:
        """What the node computes with its present settings; or why sewsnn cannot compute it."""
        # A script may change settings at any time, so each call compares their values with those of the last one.
        values = None if torch.compiler.is_compiling() else self._present_values()
        kept = self.__dict__.get("_spec")
        if values is not None and kept is not None and kept[0] == values:
            return kept[1]
        found = obstacle(self, self.kind_name) or self._new_spec()
        if values is not None and not isinstance(found, str):
            self.__dict__["_spec"] = (values, found)
        return found

    def _present_values(self) -> tuple | None:
        """Everything that decides what the node computes, as plain values; None: something is not plain."""
        state = self.__dict__
        function = surrogates.values_of(state["_modules"].get("surrogate_function"))
        if function is None:
            return None
        memory = state.get("_memories") or {}
        values = [state.get(name) for name in _OPTIONAL]
        for name in (*_EVERY, *SOME.get(self.kind_name, ())):
            if name not in memory and name not in state:
                return None  # for example a property
            values.append(memory[name] if name in memory else state[name])
        if self.kind_name == "PLIF":
            w = state["_parameters"].get("w")
            values.append(w is not None and w.numel() == 1)
        if any(type(value) not in _PLAIN for value in (*function[1:], *values)):
            return None
        return *function, *values

    def _new_spec(self) -> NeuronSpec:
        return NeuronSpec(
            self.kind,
            surrogates.ours(self.surrogate_function),
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            **self._constants(),
        )

    # ---- a call inside an op of several layers

    def why_not_joined(self) -> str:
        """Why no op may stand for the next call, whatever sewsnn can compute; empty if one may."""
        if not self.may_fuse:
            return "it stands in more than one place of the model"
        if self.step_mode != "m":
            return f"step_mode is {self.step_mode!r}"
        if self.store_v_seq:
            return "store_v_seq is set"
        if state := self._not_at_rest():
            return f"{state} is not at rest: call reset_net"
        if has_hooks(self):
            return "it has hooks"
        return "torch's operators are observed" if operators_are_observed() else ""

    def why_alone_now(self) -> str:
        """Why the node runs alone with its current settings and state; empty if it need not."""
        found = self.why_not_joined() or self.spec_or_reason()
        return found if isinstance(found, str) else ""

    def can_be_fused(self) -> bool:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return False  # a compiled graph could not raise the error of _LostGraph
        if not torch.compiler.is_compiling():
            self._check_repetition(*self._state())
            if operators_are_observed():
                return False
        plain = self.may_fuse and self.step_mode == "m" and not self.store_v_seq
        return plain and not self._not_at_rest() and not isinstance(self.spec_or_reason(), str)

    def count_call(self, norm: str, reason: str = "") -> None:
        """Counts a call for the report: the norm in the same op, or why the node ran alone."""
        calls = self.__dict__.get("_calls")
        if calls is None:
            calls = self.__dict__["_calls"] = Counter()
        calls[norm, reason] += 1

    # ---- what stays SpikingJelly's

    def extra_repr(self) -> str:
        return super(StatefulNode, self).extra_repr()

    def __reduce_ex__(self, protocol):
        # By the class before the conversion: some classes are made when the model is converted.
        return self.rebuild, (self._theirs,), self.__getstate__()
