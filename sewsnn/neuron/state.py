"""The state of a node: :class:`StatefulNode`."""

import weakref
from typing import ClassVar

import torch
from torch import Tensor, nn

from sewsnn.ops import checks
from sewsnn.ops.reference import state_dtype

#: attributes that record where a node's state came from; copies and pickles leave them out
MARKS = ("_left", "_reset_in", "_given_in")


class StatefulNode(nn.Module):
    """A module with a state, which a call may leave to the next one.

    Every state is an attribute: None at rest, else a tensor. ``v_seq`` holds the membrane potential of all time-steps.

    torch.utils.checkpoint runs each forward a second time, inside backward. A node that keeps its state would then
    start from the potential at which the first run ended, and its gradients would be wrong. Inside backward a node
    therefore accepts three starting points: rest, after a reset() inside this backward; a v that was assigned inside
    it; the end of an earlier call inside it. In every other case it raises.
    """

    #: attributes that hold the state; the first is the membrane potential
    state_names: ClassVar[tuple[str, ...]] = ("v",)

    def _state(self) -> tuple:
        """The values of the state, each None at rest."""
        return (self.v,) if len(self.state_names) == 1 else tuple(getattr(self, name) for name in self.state_names)

    def _check_repetition(self, *values) -> None:
        """Raises RuntimeError where backward repeats a forward from another state than the forward started from."""
        number = checks.backward_number()
        if number == -1:
            return
        given_in, given = self.__dict__.get("_given_in", (None, ()))
        for name, value in zip(self.state_names, values, strict=True):
            if not isinstance(value, Tensor):  # at rest
                right = self.__dict__.get("_reset_in") == number
            elif self._was_left(name, value):
                right = self.__dict__["_left"][0] == number
            else:  # assigned by the user, who has to assign it again inside backward
                right = given_in == number and name in given
            if not right:
                raise RuntimeError(
                    f"{type(self).__name__} keeps its state and runs a second time inside backward (activation "
                    "checkpointing, torch.utils.checkpoint): it would start from another potential than the forward "
                    "did, and gradients would be wrong. Call reset() of the node, call reset_net(net) or assign "
                    f"{name} at the beginning of the checkpointed function"
                )

    def _remember(self, *values) -> None:
        """Records in which backward pass (-1: in none) a call left the state; it holds the tensors weakly."""
        left = [weakref.ref(value) if isinstance(value, Tensor) else None for value in values]
        self.__dict__["_left"] = (checks.backward_number(), dict(zip(self.state_names, left, strict=True)))

    def _was_left(self, name: str, value: Tensor) -> bool:
        """Returns whether a call left this state; False if the user assigned it."""
        left = self.__dict__.get("_left", (None, {}))[1].get(name)
        return left is not None and left() is value

    def _follow(self, before: tuple, after: tuple) -> None:
        """Keeps the record of :meth:`_remember` when states become other tensors with the same values."""
        number, left = self.__dict__.get("_left", (None, {}))
        for name, old, new in zip(self.state_names, before, after, strict=True):
            if isinstance(old, Tensor) and self._was_left(name, old):
                left = {**left, name: weakref.ref(new)}
        if left:
            self.__dict__["_left"] = (number, left)

    def _note_given(self, *names: str) -> None:
        """Records in which backward pass (-1: in none) states were assigned."""
        number = checks.backward_number()
        before, given = self.__dict__.get("_given_in", (None, ()))
        self.__dict__["_given_in"] = (number, {*given, *names} if before == number else names)

    def _note_reset(self) -> None:
        """Records in which backward pass (-1: in none) the node was reset."""
        self.__dict__.pop("_left", None)
        self.__dict__["_reset_in"] = checks.backward_number()

    def _at_rest(self) -> tuple[float, ...]:
        """The numbers of the state at rest."""
        raise NotImplementedError

    def _kept_state(self, x_seq: Tensor) -> Tensor | None:
        """The state to start from, as one tensor; None: at rest."""
        values = self._state()
        if not torch.compiler.is_compiling():
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(
                    "a node that keeps its state cannot run inside a torch.func transform, because tensors made there "
                    "are invalid after it: use keep_state=False, or call sewsnn.functional, which takes and returns v"
                )
            self._check_repetition(*values)
            if not torch.is_inference_mode_enabled():  # backward may have to keep it
                values = [v.clone() if isinstance(v, Tensor) and v.is_inference() else v for v in values]
        if len(values) == 1 or all(value is None for value in values):
            return values[0]
        checks.check_input(x_seq)
        for name, value in zip(self.state_names, values, strict=True):
            checks.check_v(value, x_seq, name)
        dtype, rest = state_dtype(x_seq.dtype), self._at_rest()
        return torch.stack(
            [
                torch.full_like(x_seq[0], number, dtype=dtype) if value is None else value.to(dtype)
                for value, number in zip(values, rest, strict=True)
            ]
        )

    def _leave(self, state: Tensor, sequence: bool) -> None:
        """Stores the state, or that of every time-step, which a call has computed."""
        many = len(self.state_names) > 1
        v_seq = (state[0] if many else state) if sequence else None
        for i, name in enumerate(self.state_names):
            one = state[i] if many else state
            setattr(self, name, one[-1] if sequence else one)
        if v_seq is not None or self.v_seq is not None:
            self.v_seq = v_seq

    def set_final_v(self, v: Tensor, graph_lost: bool) -> None:
        """Stores the final state that a fused op computed in place of this node.

        Args:
            v: membrane potential ``[N, ...]`` after the last time-step, without an autograd graph; of a neuron with
                k > 1 states ``[k, N, ...]``.
            graph_lost: True if v would have had a graph outside the fused op. These nodes ignore it; nodes converted
                from SpikingJelly raise when backward reaches such a v.
        """
        if torch.compiler.is_compiling():
            self._leave(v, False)
        elif checks.outlives_its_code(v):
            self._keep_final_v(v)

    def _keep_final_v(self, v: Tensor) -> None:
        """Stores the final state, and None in v_seq, without the cost of ``Module.__setattr__``."""
        state = self.__dict__
        if self.state_names == ("v",) and "v" in state and "v_seq" in state:
            state["v"], state["v_seq"], state["_given_in"] = v, None, (checks.backward_number(), self.state_names)
        else:  # for example a buffer
            self._leave(v, False)

    def reset(self) -> None:
        """Puts the neurons back to rest: all states and ``v_seq`` become None."""
        for name in self.state_names:
            setattr(self, name, None)
        self.v_seq = None
        self._note_reset()

    def detach(self) -> None:
        """Detaches the kept state from the graph of earlier calls (truncated back-propagation through time)."""
        before = self._state()
        for name in (*self.state_names, "v_seq"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.detach())
        self._follow(before, self._state())

    def _apply(self, fn, recurse=True):
        # Convert the state first: if that fails, the parameters are still unchanged.
        names = (*self.state_names, "v_seq")
        before = [getattr(self, name) for name in names]
        after = [None if state is None else fn(state) for state in before]
        super()._apply(fn, recurse)
        for name, value in zip(names, after, strict=True):
            setattr(self, name, value)
        self._follow(tuple(before[:-1]), tuple(after[:-1]))
        return self

    def __getstate__(self):
        # Copies and pickles carry the state's values; a graph can be neither copied nor pickled.
        state = self.__dict__.copy()
        for name in (*self.state_names, "v_seq"):
            state[name] = None if state[name] is None else state[name].detach()
        for name in (*MARKS, "_spec"):
            state.pop(name, None)
        return state
