"""The result of a batch norm that has not been computed yet: :class:`Deferred`.

Model code calls a batch norm, reshapes or transposes its result, perhaps adds a shortcut, and passes it to a neuron. A
converted batch norm therefore returns a tensor without values. It takes the statistics and updates the running
statistics at once, but computes BN(z) only if somebody needs the values. Views and sums of such a tensor have no values
either. A converted neuron that receives one runs batch norm, sum and neuron as one op, from z (convert/joined.py). In
the first call of a batch norm, a watched one (convert/sources.py), the values exist from the start.

Everything else that reads the values gets them: ``__torch_function__`` computes BN(z) as the batch norm would have
done, and continues with a plain tensor. Code that torch does not announce in this way (``autograd.Function.apply``,
compiled extensions) finds a tensor with an autograd graph, and ``__torch_dispatch__`` gives it the values.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from sewsnn.convert.sources import Source, Steps, follow

_NoFunction = torch._C.DisableTorchFunctionSubclass

#: operations that need no values: function -> handler(function, args, kwargs), which may return NotImplemented; filled
#: by convert/recorded.py
HANDLERS: dict[Callable, Callable] = {}
#: those of them that keep the values in their order
IN_ORDER: set[Callable] = set()


class Deferred(Tensor):
    """A tensor that stands for the values of a source, or for a view of them.

    Attributes:
        source: the batch norm's call, or the sum.
        steps: the view: functions that lead from the values of the source to those of this tensor.
        z: the input of the norm in the shape of this tensor.
        axis: the dimension that holds the channels; None: no dimension does.
        shortcut: of a sum, the shortcut in the shape of this tensor; None: this is no sum.
        still: the image that z repeats over its first dimension; None: z repeats nothing.
        statistics: those of the whole input of the norm, if z is its pooled input (layers/pooling.py); else None.
        like: a tensor with the sizes and strides that the values have, perhaps on the device "meta".
        computed: the values, if they exist.
    """

    @staticmethod
    def of(
        source: Source,
        steps: Steps,
        z: Tensor,
        axis: int | None,
        like: Tensor,
        shortcut: Tensor | None = None,
        still: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> "Deferred":
        """Makes one. ``like`` holds the values if the source is watched."""
        grad = source.grad and torch.is_grad_enabled()
        state = None
        if source.watched and like.requires_grad:
            state = [like]
            self = _with_graph_of(like, state)
        elif grad and source.needs_grad and not source.watched:
            state = [source, steps, like]
            self = _with_graph(*source.inputs, state)
        else:
            self = _without_values(like, z.device)
        self.source, self.steps, self.z, self.axis, self.shortcut, self.still = source, steps, z, axis, shortcut, still
        self.statistics, self.graph_state, self.grad_mode, self.like = statistics, state, grad, like
        self.computed = like if source.watched else None
        self.attached = None
        self.mark = _graph_of(self)
        source.derived.append(weakref.ref(self))
        return self

    @property
    def known(self) -> bool:
        """Whether the values of a deferred source exist."""
        return self.source.computed and not self.source.watched

    def value(self) -> Tensor:
        """The values, as a plain tensor."""
        if self.computed is None:
            values = self.source.value()
            with torch.inference_mode(False), torch.set_grad_enabled(self.grad_mode):
                self.computed = follow(self.steps, values)
        if self.source.spent:  # from now on the op of the neuron returns the values as well
            self.source.call.norm.values_wanted = True
        graph = _graph_of(self)
        if graph != self.mark:
            # Code below __torch_function__ has changed this tensor in place, or an autograd.Function has returned it:
            # autograd has recorded this for this tensor, and not for its values.
            if self.attached is None or self.attached[0] != graph:
                self.attached = graph, _Attached.apply(self)
            return self.attached[1]
        return self.computed

    def raw(self) -> Tensor:
        """The values without a graph, for code below autograd."""
        if self.computed is not None:
            return self.computed.detach()
        with torch.no_grad():
            return follow(self.steps, self.source.raw())

    @property
    def has_own_graph(self) -> bool:
        """Whether autograd has recorded something for this tensor itself: a change in place, or an autograd.Function
        that has returned it."""
        return _graph_of(self) != self.mark

    def forget(self) -> None:
        """Lets the next use read the values of the source again."""
        self.computed = None

    @property
    def keeps_order(self) -> bool:
        """Whether the values are those of the source in the same order, so that a reshape leads back to them."""
        return all(function in IN_ORDER for function, _, _ in self.steps)

    def become(self, other: "Deferred") -> None:
        """Takes the values of another one, after an operation in place."""
        if self.graph_state is not None:
            self.graph_state[:] = [None] * len(self.graph_state)  # its autograd graph is that of the old values
        self.source, self.steps, self.z, self.axis = other.source, other.steps, other.z, other.axis
        self.shortcut, self.still, self.statistics, self.like = (
            other.shortcut,
            other.still,
            other.statistics,
            other.like,
        )
        self.computed, self.attached, self.mark = other.computed, None, _graph_of(self)
        other.source.derived.append(weakref.ref(self))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in _ASKS:
            asked = args[0]
            if type(asked) is Deferred and asked.computed is not None:  # it may have been changed in place
                answer = asked.value() if func in _GRAPH_ASKS else asked.computed
                return func(answer, *args[1:], **(kwargs or {}))
            with _NoFunction():
                return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None:
            result = handler(func, args, kwargs)
            if result is not NotImplemented:
                return result
        if func in _GRADIENTS:
            _check_gradients(func, args, kwargs)
        if handler is None or not _spent(args):
            _touch((args, kwargs), _may_change(func, args, kwargs))
        _prepare_change(func, args, kwargs)
        return func(*_plain(args), **_plain(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Only code that does not look for __torch_function__ comes here, below autograd: it needs values, no graph.
        _touch((args, kwargs), True)
        return func(*_plain(args, True), **_plain(kwargs or {}, True))


def plain(x):
    """The values of a Deferred; anything else itself."""
    return x.value() if type(x) is Deferred else x


def used(x):
    """The values of a Deferred for somebody who is no neuron; anything else itself."""
    _touch(x)
    return plain(x)


def _plain(x, raw: bool = False):
    if type(x) is Deferred:
        return x.raw() if raw else x.value()
    if isinstance(x, (tuple, list)) and not isinstance(x, torch.Size):
        items = [_plain(item, raw) for item in x]
        if isinstance(x, list):
            return items
        return type(x)(*items) if hasattr(x, "_fields") else tuple(items)
    if type(x) is dict:
        return {key: _plain(item, raw) for key, item in x.items()}
    return x


def _touch(x, shared: bool = False) -> None:
    """Notes that somebody who is no neuron uses the values of each Deferred in x. ``shared``: and may change them."""
    if type(x) is Deferred:
        if not x.source.spent or x.source is x.source.call:
            x.source.touch()
        elif shared:  # the op of the neuron keeps its sum for backward
            x.source.call.touch()
    elif isinstance(x, (tuple, list)):
        for item in x:
            _touch(item, shared)
    elif type(x) is dict:
        for item in x.values():
            _touch(item, shared)


def _spent(args) -> bool:
    """Whether the first argument is a Deferred that a neuron has joined: an operation that is recorded may follow."""
    return bool(args) and type(args[0]) is Deferred and args[0].source.spent


def _graph_of(x: Deferred) -> tuple:
    """What autograd has recorded for the tensor itself."""
    with _NoFunction():
        return x._version, x.grad_fn


# ---- the autograd graph, for code that does not ask for values through __torch_function__


def _without_values(like: Tensor, device: torch.device) -> Deferred:
    return Tensor._make_wrapper_subclass(Deferred, like.shape, strides=like.stride(), dtype=like.dtype, device=device)


class _Graph(torch.autograd.Function):
    """From the inputs of a deferred source."""

    @staticmethod
    def forward(ctx, z, weight, bias, shortcut, state):
        # Not by save_for_backward: hooks on saved tensors would see tensors that usually nobody uses.
        ctx.tensors, ctx.state = (z, weight, bias, shortcut), state
        return _without_values(state[2], z.device)

    @staticmethod
    def backward(ctx, grad):
        source, steps, _ = ctx.state
        if source is None:
            raise RuntimeError(_STALE)
        # A graph of its own: that of source.value() may have been freed by now.
        inputs = [None if t is None else t.detach() for t in ctx.tensors]
        needed = [t.requires_grad_() for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
        with torch.enable_grad():
            value = follow(steps, source.from_inputs(*inputs))
        found = iter(torch.autograd.grad(value, needed, grad))
        return *(next(found) if need else None for need in ctx.needs_input_grad[:4]), None


class _GraphOf(torch.autograd.Function):
    """From the values of a watched source."""

    @staticmethod
    def forward(ctx, value, state):
        ctx.state = state
        return _without_values(value, value.device)

    @staticmethod
    def backward(ctx, grad):
        if ctx.state[0] is None:
            raise RuntimeError(_STALE)
        return grad, None


class _Attached(torch.autograd.Function):
    """From a Deferred that has the graph of an autograd.Function to its values."""

    @staticmethod
    def forward(ctx, x):
        return x.raw()

    @staticmethod
    def backward(ctx, grad):
        return grad


_STALE = (
    "backward reached a batch norm's result that was changed in place after an operation without __torch_function__ "
    "(for example an autograd.Function) had used it: clone it first, or convert with "
    "from_spikingjelly(model, fuse=False)"
)
_with_graph = super(torch.autograd.Function, _Graph).apply  # without the work that only torch.func needs
_with_graph_of = super(torch.autograd.Function, _GraphOf).apply


# ---- questions that need no values, and changes in place

_ASKS = {
    getattr(Tensor, name).__get__
    for name in (
        *("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_leaf", "layout", "is_sparse"),
        *("is_quantized", "is_nested", "is_meta", "is_mps", "is_xpu", "itemsize", "nbytes"),
    )
}
_ASKS |= {
    getattr(Tensor, name)
    for name in (
        *("size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex", "__len__"),
        *("get_device", "element_size", "ndimension", "is_inference", "is_signed", "is_conj", "is_neg"),
    )
}
_ASKS |= {torch.numel, torch.is_floating_point, torch.is_complex}

_GRAPH_ASKS = {Tensor.requires_grad.__get__, Tensor.is_leaf.__get__}

_CHANGES = {"__setitem__", "__set__", "data_ptr", "numpy"}
_CHANGES |= {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")}


#: functions that ask for the gradient of a tensor -> that tensor, or several
_GRADIENTS = {
    Tensor.register_hook: lambda args, kwargs: args[0],
    Tensor.retain_grad: lambda args, kwargs: args[0],
    torch.autograd.grad: lambda args, kwargs: kwargs["inputs"] if "inputs" in kwargs else args[1],
}


def _check_gradients(func, args, kwargs) -> None:
    """Raises RuntimeError if the gradient is that of a result which a neuron has joined: its part does not exist."""
    asked = _GRADIENTS[func](args, kwargs)
    for x in asked if isinstance(asked, (tuple, list)) else (asked,):
        if type(x) is Deferred and x.source.call.spent:
            raise RuntimeError(
                f"{func.__name__}: the gradient of a batch norm's result (or of its sum with a shortcut) is not "
                "complete, because a neuron has joined the batch norm in one op: register the hook or retain the "
                "gradient before the neuron is called, or convert with from_spikingjelly(model, fuse=False)"
            )


#: functions whose result shares the memory of a tensor
_SHARE = {
    "detach",
    "__getitem__",
    "chunk",
    "split",
    "unbind",
    "select",
    "narrow",
    "diagonal",
    "__array__",
    "__dlpack__",
}
_SHARE |= {"view_as", "expand_as", "as_strided", "unfold", "tensor_split", "hsplit", "vsplit", "dsplit", "__get__"}


def _changes(func, args, kwargs) -> bool:
    """Whether an operation may change a tensor in place."""
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _CHANGES or kwargs.get("inplace")
    return bool(in_place) or any(x is True for x in args) or kwargs.get("out") is not None


def _may_change(func, args, kwargs) -> bool:
    """Whether an operation may change a tensor in place, or returns something that may."""
    name = getattr(func, "__name__", "")
    return name in _SHARE or "foreach" in name or _changes(func, args, kwargs)


def _prepare_change(func, args, kwargs) -> None:
    """Before an operation that may change a Deferred in place: computes everything that depends on it."""
    if not _changes(func, args, kwargs):
        return
    for x in (*args[:1], kwargs.get("out"), kwargs.get("input")):
        if type(x) is Deferred:
            x.source.unshare()
            for other in x.source.living():
                other.value()
