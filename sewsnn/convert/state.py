"""The state of a converted node, which stays SpikingJelly's: memories, reset, ``v_seq``."""

import contextlib
from typing import ClassVar

import torch
from torch import Tensor

from sewsnn import neuron
from sewsnn.neuron.state import MARKS, StatefulNode
from sewsnn.ops.reference import state_dtype


class _LostGraph(torch.autograd.Function):
    """A state whose graph was not kept: backward raises an error instead of returning no gradient."""

    @staticmethod
    def forward(ctx, state, name, leaf):
        ctx.name = name
        return state.detach()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            f"backward reached the state {ctx.name} that an earlier call of a neuron left, but that call was fused "
            f"with batch norm and kept no graph of {ctx.name}: call reset_net(net) or detach_net(net) between calls; "
            f"to train through {ctx.name}, convert with from_spikingjelly(model, fuse=False)"
        )


_lose_graph = super(torch.autograd.Function, _LostGraph).apply  # without the work that only torch.func needs
_LEAF = torch.empty(0, requires_grad=True)  # lets autograd record a graph


def lost_graph(state: Tensor, name: str) -> Tensor:
    """The state, with a graph whose backward raises an error."""
    return _lose_graph(state, name, _LEAF)


class SharedState(neuron.BaseNode):
    """A node whose states (``v``; CUBALIFNode: also ``c``) are memories of SpikingJelly's node, which sewsnn's node
    reads and writes."""

    store_v = True
    #: SpikingJelly >= 2.0 makes the state from the input: a v of another shape counts as rest, and v_seq is no memory
    state_follows_input: ClassVar[bool] = False

    def _state(self) -> tuple:
        memory = self.__dict__.get("_memories")
        if not memory or torch.compiler.is_compiling():
            return super()._state()
        values = tuple([memory[name] for name in self.state_names])
        if any(isinstance(value, Tensor) for value in values) and self._forget_transforms():
            return super()._state()
        return values

    def __setattr__(self, name, value):
        super(StatefulNode, self).__setattr__(name, value)  # unchecked: SpikingJelly runs what no kernel takes
        if name in self.state_names and not torch.compiler.is_compiling():
            self._note_given(name)

    def _leave(self, state: Tensor, sequence: bool) -> None:
        # Copies, not views: detach() works in place, and torch cannot detach a view in place.
        many = len(self.state_names) > 1
        for i, name in enumerate(self.state_names):
            one = state[i] if many else state
            setattr(self, name, one[-1].clone() if sequence else one.clone() if many else one)
        if sequence:
            self.v_seq = state[0] if many else state
        elif self.state_follows_input and self.step_mode == "m":
            self.v_seq = None

    @property
    def _rest(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    def _rest_of(self, name: str) -> float:
        return self._rest if name == "v" else 0.0

    def _not_at_rest(self) -> str:
        """The name of a state that is not at rest; empty if all are."""
        for name, value in zip(self.state_names, self._state(), strict=True):
            if isinstance(value, Tensor) or value != self._rest_of(name):
                return name
        return ""

    def _initial_state(self, x_seq: Tensor) -> Tensor | None:
        """The state to start from, in the state's dtype; None: at rest."""
        if len(self.state_names) == 1:
            return self._initial("v", x_seq)
        states = [self._initial(name, x_seq) for name in self.state_names]
        if all(state is None for state in states):
            return None
        shape, dtype = x_seq.shape[1:], state_dtype(x_seq.dtype)
        return torch.stack(
            [
                x_seq.new_full(shape, self._rest_of(name), dtype=dtype) if state is None else state
                for name, state in zip(self.state_names, states, strict=True)
            ]
        )

    def _initial(self, name: str, x_seq: Tensor) -> Tensor | None:
        v, shape, dtype = getattr(self, name), x_seq.shape[1:], state_dtype(x_seq.dtype)
        if not isinstance(v, Tensor):
            return None if v == self._rest_of(name) else x_seq.new_full(shape, v, dtype=dtype)
        if not torch.compiler.is_compiling() and v.is_inference() and not torch.is_inference_mode_enabled():
            v = v.clone()  # backward may have to keep it
        if self.state_follows_input:
            return v.to(x_seq.device, dtype) if v.shape == shape else None
        if v.shape != shape:
            with contextlib.suppress(RuntimeError):  # sewsnn's own check raises a clearer error
                v = v.expand(shape)
        return v.to(dtype)

    def set_final_v(self, v: Tensor, graph_lost: bool) -> None:
        many = len(self.state_names) > 1
        for i, name in enumerate(self.state_names):
            one = v[i].clone() if many else v
            setattr(self, name, lost_graph(one, name) if graph_lost else one)
        if self.state_follows_input:
            self.v_seq = None
        if not torch.compiler.is_compiling():
            self._remember(*self._state())

    def __getattr__(self, name):
        value = super(StatefulNode, self).__getattr__(name)
        if (name in self.state_names or name == "v_seq") and isinstance(value, Tensor) and self._forget_transforms():
            return super(StatefulNode, self).__getattr__(name)
        return value

    def _forget_transforms(self) -> bool:
        """Puts the node back to rest if its state is from a torch.func transform that has ended.

        The tensors of such a transform are invalid after it.
        """
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return False
        dead = [
            name
            for name, value in self._memory().items()
            if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
        ]
        for name in dead:
            self._memory()[name] = self._rest_of(name) if name in self.state_names else None
        v_seq = self.__dict__.get("v_seq")  # not a memory in SpikingJelly 2.0
        if isinstance(v_seq, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(v_seq):
            self.__dict__["v_seq"] = None
        return bool(dead)

    @property
    def keeps_state(self) -> bool:
        return True

    def reset(self) -> None:
        super(StatefulNode, self).reset()
        self._note_reset()

    def detach(self) -> None:
        old = self._state()
        super(StatefulNode, self).detach()
        self._follow(old, self._state())

    def _apply(self, fn, recurse=True):
        # SpikingJelly's _apply takes no second argument. A node has no submodules that recurse=False would skip.
        self._forget_transforms()
        old = self._state()
        super(StatefulNode, self)._apply(fn)
        self._follow(old, self._state())
        return self

    def __getstate__(self):
        # As in sewsnn: copies and pickles carry the state's values; a graph can be neither copied nor pickled.
        self._forget_transforms()
        state = self.__dict__.copy()
        if "_memories" in state:
            state["_memories"] = {name: _detached(value) for name, value in state["_memories"].items()}
        for name in (*MARKS, "_spec"):
            state.pop(name, None)
        for name in (*self.state_names, "v_seq", "spike"):  # in SpikingJelly 0.0.0.0.4 the state is no memory
            if name in state:
                state[name] = _detached(state[name])
        return state

    def _memory(self) -> dict:
        """The states by name."""
        return self.__dict__.get("_memories", {})


def _detached(value):
    return value.detach() if isinstance(value, Tensor) else value


class SequenceBesideMemories:
    """``v_seq`` of a node in SpikingJelly >= 2.0, which is no memory."""

    @property
    def v_seq(self) -> Tensor | None:
        if isinstance(self.__dict__.get("v_seq"), Tensor):
            self._forget_transforms()
        return self.__dict__.get("v_seq")

    @v_seq.setter
    def v_seq(self, value: Tensor | None) -> None:
        self.__dict__["v_seq"] = value
