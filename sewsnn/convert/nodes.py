"""The classes to which :func:`sewsnn.convert.from_spikingjelly` swaps SpikingJelly's neurons. Imports SpikingJelly.

Each class derives from SpikingJelly's node and from sewsnn's. SpikingJelly's node keeps the state (``v`` and ``v_seq``,
reset, memories, step mode); sewsnn's node computes a call. A call reads each setting when it needs it, so a script may
change settings at any time. If sewsnn has no kernel for a setting (:func:`obstacle`), SpikingJelly's own forward runs.
"""

import contextlib
import numbers

import torch
from spikingjelly.activation_based import neuron as theirs
from spikingjelly.activation_based import surrogate as their_surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sewsnn import functional, neuron, surrogate
from sewsnn.checks import DTYPES, is_finite
from sewsnn.layers.plan import has_hooks
from sewsnn.neuron.state import MARKS, StatefulNode
from sewsnn.ops.neuron import V_FINAL, V_SEQUENCE
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec

#: methods of a surrogate that a script may replace on the object
_METHODS = {"forward", "spiking_function", "primitive_function", "backward", "__call__"}
#: SpikingJelly >= 2.0 makes the state from the input: a v of another shape counts as rest, and v_seq is not a memory
STATE_FOLLOWS_INPUT = hasattr(theirs.BaseNode, "materialize_states")

_SAME_ALPHA = ("ATan", "Erf", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign", "SuperSpike")
#: SpikingJelly's surrogates -> functions of alpha that make ours; looked up by name, because 0.0.0.0.14 lacks some
_SURROGATES = {
    getattr(their_surrogate, name): make
    for name, make in (
        *((name, getattr(surrogate, name)) for name in _SAME_ALPHA),
        ("Rect", lambda alpha: surrogate.Rectangular(1 / alpha)),
    )
    if hasattr(their_surrogate, name)
}


def _is_number(value) -> bool:
    # The comparison of types comes first for speed: every call of a neuron runs this check.
    number = type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    return number and is_finite(value)


def obstacle(node: nn.Module) -> str | None:
    """Why sewsnn cannot compute this SpikingJelly node with its current settings; None if it can."""
    function = node.surrogate_function
    if type(function) not in _SURROGATES:
        return f"sewsnn has no surrogate like {type(function).__module__}.{type(function).__name__}"
    if not function.spiking:
        return "surrogate_function.spiking is False: the node does not output spikes"
    if has_hooks(function):
        return "surrogate_function has hooks"
    if not _METHODS.isdisjoint(vars(function)):
        return "a method of surrogate_function was replaced"
    if not _is_number(function.alpha) or function.alpha <= 0:
        return f"surrogate_function.alpha is {_named(function.alpha)}, not a positive, finite number"
    if not _is_number(node.v_threshold):
        return f"v_threshold is {_named(node.v_threshold)}, not a finite number"
    if node.v_reset is not None and not _is_number(node.v_reset):
        return f"v_reset is {_named(node.v_reset)}, neither None nor a finite number"
    if isinstance(node, theirs.LIFNode) and not (_is_number(node.tau) and node.tau >= 1):
        return f"tau is {_named(node.tau)}, not a finite number of at least 1"
    if isinstance(node, theirs.ParametricLIFNode) and not (isinstance(node.w, Tensor) and node.w.numel() == 1):
        return "w is not a tensor with one element"
    if getattr(node, "_neuron_precision", None) is not None:
        return "a precision is set for it (spikingjelly's neuron precision)"
    return None


def patched(node: nn.Module) -> str | None:
    """The name of a method that was replaced on this one object, which sewsnn would not call; None if there is none."""
    return next((name for name in vars(node) if callable(getattr(type(node), name, None))), None)


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
    if isinstance(node.v, Tensor) or node.v != node._rest:
        return "v is not at rest: call reset_net"
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


def _named(value) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)


class _LostGraph(torch.autograd.Function):
    """A membrane potential whose graph was not kept: backward raises an error instead of returning no gradient."""

    @staticmethod
    def forward(ctx, v, leaf):
        return v.detach()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "backward reached the membrane potential v that an earlier call of a neuron left, but that call was fused "
            "with batch norm and kept no graph of v: call reset_net(net) or detach_net(net) between calls; to train "
            "through v, convert with from_spikingjelly(model, fuse=False)"
        )


class _Bridge(neuron.BaseNode):
    """The code that the three node classes share. It is never constructed: the class of an existing node is swapped."""

    store_v = True
    _keeps_spec = False  # a script may change settings at any time
    wanted_backend = "auto"  # node.backend is SpikingJelly's
    may_fuse = True  # False for a node in more than one place of the model: each call continues from the last one's v

    def __setattr__(self, name, value):
        super(StatefulNode, self).__setattr__(name, value)  # unchecked: SpikingJelly runs what no kernel takes
        if name == "v" and not torch.compiler.is_compiling():
            self._note_given(name)

    # ---- a call

    def forward(self, x: Tensor) -> Tensor:
        """Computes the spikes of x: ``[T, N, ...]``, or ``[N, ...]`` in single-step mode; sets ``v`` and ``v_seq``."""
        eager = not torch.compiler.is_compiling()
        if eager:
            self._check_repetition(self.v)
        if obstacle(self) is not None or x.dtype not in DTYPES or (eager and operators_are_watched()):
            s = super(StatefulNode, self).forward(x)
            if eager:
                self._remember(self.v)
            return s
        single = self.step_mode == "s"
        sequence = self.store_v_seq and not single
        x_seq = x.unsqueeze(0) if single else as_stacked(x)
        s_seq, v = functional.multistep(
            x_seq,
            self._initial_v(x_seq),
            self.spec(),
            self.learnt_parameters(state_dtype(x_seq.dtype)),
            v_mode=V_SEQUENCE if sequence else V_FINAL,
            backend=self.wanted_backend,
        )
        # A copy, not a view: detach() works in place, and torch cannot detach a view in place.
        self.v = v[-1].clone() if sequence else v
        if sequence:
            self.v_seq = v
        elif STATE_FOLLOWS_INPUT and not single:
            self.v_seq = None
        elif STATE_FOLLOWS_INPUT and self.store_v_seq:
            self._append_v_seq(self.v)
        if eager:
            self._remember(self.v)
        return s_seq.squeeze(0) if single else s_seq

    @property
    def _rest(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    def _initial_v(self, x_seq: Tensor) -> Tensor | None:
        """The membrane potential to start from, in the state's dtype; None: at rest."""
        v, shape, dtype = self.v, x_seq.shape[1:], state_dtype(x_seq.dtype)
        if not isinstance(v, Tensor):
            return None if v == self._rest else x_seq.new_full(shape, v, dtype=dtype)
        if v.is_inference() and not torch.is_inference_mode_enabled():
            v = v.clone()  # backward may have to keep it
        if STATE_FOLLOWS_INPUT:
            return v.to(x_seq.device, dtype) if v.shape == shape else None
        if v.shape != shape:
            with contextlib.suppress(RuntimeError):  # sewsnn's own check raises a clearer error
                v = v.expand(shape)
        return v.to(dtype)

    def _new_spec(self) -> NeuronSpec:
        function = self.surrogate_function
        return NeuronSpec(
            self.kind,
            _SURROGATES[type(function)](float(function.alpha)),
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            **self._constants(),
        )

    # ---- a call inside an op of several layers

    def can_be_fused(self) -> bool:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return False  # a compiled graph could not raise the error of _LostGraph
        if not torch.compiler.is_compiling():
            self._check_repetition(self.v)
            if operators_are_watched():
                return False
        plain = self.may_fuse and self.step_mode == "m" and not self.store_v_seq
        return plain and not isinstance(self.v, Tensor) and self.v == self._rest and obstacle(self) is None

    def set_final_v(self, v: Tensor, graph_lost: bool) -> None:
        if graph_lost:
            v = _LostGraph.apply(v, torch.empty(0, requires_grad=True))
        self.v = v
        if not torch.compiler.is_compiling():
            self._remember(v)
        if STATE_FOLLOWS_INPUT:
            self.v_seq = None

    # ---- the state is SpikingJelly's

    def __getattr__(self, name):
        value = super(StatefulNode, self).__getattr__(name)
        if name in ("v", "v_seq") and isinstance(value, Tensor) and self._forget_transforms():
            return super(StatefulNode, self).__getattr__(name)
        return value

    def _forget_transforms(self) -> bool:
        """Puts the node back to rest if its state is from a torch.func transform that has ended.

        The tensors of such a transform are invalid after it.
        """
        if torch._C._are_functorch_transforms_active():
            return False
        dead = [
            name
            for name, value in self._memories.items()
            if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
        ]
        for name in dead:
            self._memories[name] = self._rest if name == "v" else None
        v_seq = self.__dict__.get("v_seq")  # not a memory in SpikingJelly 2.0
        if isinstance(v_seq, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(v_seq):
            self.__dict__["v_seq"] = None
        return bool(dead)

    if STATE_FOLLOWS_INPUT:

        @property
        def v_seq(self) -> Tensor | None:
            if isinstance(self.__dict__.get("v_seq"), Tensor):
                self._forget_transforms()
            return self.__dict__.get("v_seq")

        @v_seq.setter
        def v_seq(self, value: Tensor | None) -> None:
            self.__dict__["v_seq"] = value

    @property
    def keeps_state(self) -> bool:
        return True

    def reset(self) -> None:
        super(StatefulNode, self).reset()
        self._note_reset()

    def detach(self) -> None:
        old = self.v
        super(StatefulNode, self).detach()
        self._follow((old,), (self.v,))

    def _apply(self, fn, recurse=True):
        # SpikingJelly's _apply takes no second argument. A node has no submodules that recurse=False would skip.
        self._forget_transforms()
        old = self.v
        super(StatefulNode, self)._apply(fn)
        self._follow((old,), (self.v,))
        return self

    def __getstate__(self):
        # As in sewsnn: copies and pickles carry the state's values; a graph can be neither copied nor pickled.
        self._forget_transforms()
        state = self.__dict__.copy()
        state["_memories"] = {name: _detached(value) for name, value in self._memories.items()}
        for name in MARKS:
            state.pop(name, None)
        if "v_seq" in state:
            state["v_seq"] = _detached(state["v_seq"])
        return state

    def extra_repr(self) -> str:
        return super(StatefulNode, self).extra_repr()


def _detached(value):
    return value.detach() if isinstance(value, Tensor) else value


class IFNode(_Bridge, neuron.IFNode, theirs.IFNode):
    """SpikingJelly's IFNode, computed by sewsnn."""


class LIFNode(_Bridge, neuron.LIFNode, theirs.LIFNode):
    """SpikingJelly's LIFNode, computed by sewsnn."""


class ParametricLIFNode(_Bridge, neuron.ParametricLIFNode, theirs.ParametricLIFNode):
    """SpikingJelly's ParametricLIFNode, computed by sewsnn."""

    tau_grad = "full"


#: the classes that are swapped, by exact type
CLASSES: dict[type, type] = {
    theirs.IFNode: IFNode,
    theirs.LIFNode: LIFNode,
    theirs.ParametricLIFNode: ParametricLIFNode,
}
