"""The result of a batch norm that has not been computed yet: :class:`Deferred`.

Model code calls a batch norm, reshapes or transposes its result, perhaps adds a shortcut, and passes it to a neuron. A
converted batch norm therefore returns a tensor without values. It takes the statistics and updates the running
statistics at once, but computes BN(z) only if somebody needs the values. Views and sums of such a tensor have no values
either. A converted neuron that receives one runs batch norm, sum and neuron as one op, from z (convert/joined.py).

Everything else that reads the values gets them: ``__torch_function__`` computes BN(z) as the batch norm would have
done, and continues with a plain tensor. Code that torch does not announce in this way (``autograd.Function.apply``,
compiled extensions) finds a tensor with an autograd graph, and ``__torch_dispatch__`` gives it the values.
"""

import weakref
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

from sewsnn.layers.norm import Normalisation, for_one_call, normalisation, tensors_of, update_running
from sewsnn.ops import bn as native
from sewsnn.ops.reference import state_dtype

_NoFunction = torch._C.DisableTorchFunctionSubclass
_numbers = count()

#: view functions in their order, each with the arguments after the tensor
Steps = tuple[tuple[Callable, tuple, dict], ...]


def _versions(tensors) -> list[int]:
    return [-1 if tensor is None else tensor._version for tensor in tensors]


class Source:
    """Something whose values are computed when they are first needed.

    Attributes:
        number: sources are numbered in the order in which they were made.
        derived: the Deferred tensors that depend on the values.
        spent: a neuron has used it in its op.
        call: the call of the batch norm.
        inputs: what gradients reach: z, weight and bias of the norm, and the shortcut or None.
        grad: gradients were enabled when the source was made.
        needs_grad: one of the inputs requires a gradient.
    """

    call: "NormCall"
    inputs: tuple[Tensor | None, ...]
    needs_grad: bool

    def __init__(self):
        self.number = next(_numbers)
        self.derived: list[weakref.ref] = []
        self.spent = False
        self.grad = torch.is_grad_enabled()
        self._value = self._raw = None

    @property
    def computed(self) -> bool:
        """Whether the values exist."""
        return self._value is not None

    def value(self) -> Tensor:
        """The values, with an autograd graph if gradients were enabled when the source was made."""
        if self._value is None:
            with torch.set_grad_enabled(self.grad):
                self._value = self._compute()
        return self._value

    def set_value(self, value: Tensor) -> None:
        """Lets the result of an op be the values."""
        self._value = value

    def unshare(self) -> None:
        """Copies the values if an op has kept them for backward: they are about to be changed."""
        if self.spent and self._value is not None:
            with torch.set_grad_enabled(self.grad):
                self._value = self._value.clone()
            for tensor in self.living():
                tensor.forget()

    def living(self) -> list["Deferred"]:
        """The tensors in ``derived`` that somebody still holds."""
        return [tensor for tensor in (ref() for ref in self.derived) if tensor is not None]

    def raw(self) -> Tensor:
        """The values without a graph, for code below autograd."""
        if self._value is not None:
            return self._value.detach()
        if self._raw is None:
            with torch.no_grad():
                self._raw = self._compute_raw()
        return self._raw

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _compute_raw(self) -> Tensor:
        return self.from_inputs(*self.inputs)

    def from_inputs(self, z: Tensor, weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
        """The values, computed from tensors in place of the inputs."""
        raise NotImplementedError


class NormCall(Source):
    """One call of a batch norm. It takes the statistics and updates the running statistics.

    Args:
        norm: a batch norm of :mod:`sewsnn.convert.norms`.
        z: its input.
        z_seq: z as the ops take it, ``[T, N, C, ...]``.
        undo: the call may become one of the original batch norm: remember the running statistics.

    Attributes:
        n: statistics, weight and bias, as the ops take them.
    """

    def __init__(self, norm: nn.Module, z: Tensor, z_seq: Tensor, undo: bool):
        super().__init__()
        weight, bias, *running = tensors_of(norm)
        self.norm, self.z = norm, z
        self.inputs = (z, weight, bias, None)
        self.needs_grad = z.requires_grad or any(t is not None and t.requires_grad for t in (weight, bias))
        self._before = None
        if undo and norm.training and norm.track_running_stats:
            self._before = [None if buffer is None else buffer.clone() for buffer in running]
        one_call = for_one_call(norm, state_dtype(z.dtype))
        if one_call is None:
            self.n = normalisation(norm, z_seq, 0)
            update_running(norm, self.n)
        else:
            statistics = native.take_statistics(z_seq, one_call[2], 0)
            self.n = Normalisation(statistics, *one_call[:2], norm.eps, True, z.numel() / norm.num_features)
        self._read = (z, weight, bias, *(() if self.n.training else running[:2]))
        self._read_versions = _versions(self._read)
        self._running, self._running_versions = running, _versions(running) if self._before else None

    @property
    def call(self) -> "NormCall":
        return self

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    def check_unchanged(self) -> None:
        """Raises RuntimeError if BN(z) can no longer be computed."""
        if _versions(self._read) == self._read_versions:
            return
        pairs = zip(_READ, _versions(self._read), self._read_versions, strict=False)
        name = next(name for name, now, before in pairs if now != before)
        raise RuntimeError(
            f"the result of {type(self.norm).__name__} {self.norm.place} is computed when it is first used, but "
            f"{name} was changed in place in the meantime: use the result before this change (for example by .clone()),"
            " or convert with from_spikingjelly(model, fuse=False)"
        )

    def _compute(self) -> Tensor:
        self.check_unchanged()
        before, self._before = self._before, None
        self.norm.note_computed(self.spent)
        if self.spent or (self.n.training and self.norm.training and before is None):
            return self.from_inputs(*self.inputs)
        if before is not None:
            if _versions(self._running) != self._running_versions:  # somebody has used the new running statistics
                return self.from_inputs(*self.inputs)
            with torch.no_grad():  # take the update back: the norm makes it again
                for buffer, old in zip(self._running, before, strict=True):
                    if buffer is not None:
                        buffer.copy_(old)
        return self.norm.original_forward(self.z)

    def from_inputs(self, z, weight, bias, shortcut):
        self.check_unchanged()
        n, state = self.n, self.n.statistics.dtype
        weight, bias = (None if t is None else t.to(state).contiguous() for t in (weight, bias))
        z_seq = z if self.norm.over_time else z.unsqueeze(0)
        options = native.Options(n.eps, native.NONE, 0, None)
        kept = {"training": n.training, "count": n.count, "group": n.group}
        y = native.bn_neuron(z_seq, None, n.statistics, weight, bias, None, options, **kept).out
        return y.reshape(z.shape)


_READ = ("its input", "its weight", "its bias", "its running mean", "its running variance")


class Sum(Source):
    """A deferred tensor plus a shortcut of the same shape."""

    def __init__(self, x: "Deferred", shortcut: Tensor):
        super().__init__()
        self.call, self.grad = x.source.call, x.source.grad and torch.is_grad_enabled()
        self.inputs = (*x.source.inputs[:3], shortcut)
        self.needs_grad = x.source.needs_grad or shortcut.requires_grad
        self._source, self._steps, self._shortcut = x.source, x.steps, shortcut
        self._version = shortcut._version

    @property
    def shape(self) -> torch.Size:
        return self._shortcut.shape

    def check_unchanged(self) -> None:
        """Raises RuntimeError if the sum can no longer be computed."""
        if self._shortcut._version != self._version:
            raise RuntimeError(
                "a batch norm's result plus a shortcut is computed when it is first used, but the shortcut was changed "
                "in place in the meantime: use the sum before this change, or convert with "
                "from_spikingjelly(model, fuse=False)"
            )
        self.call.check_unchanged()

    def _compute(self) -> Tensor:
        self.check_unchanged()
        return _follow(self._steps, self._source.value()) + self._shortcut

    def from_inputs(self, z, weight, bias, shortcut):
        self.check_unchanged()
        return _follow(self._steps, self._source.from_inputs(z, weight, bias, None)) + shortcut


def _follow(steps: Steps, value: Tensor) -> Tensor:
    for function, args, kwargs in steps:
        value = function(value, *args, **kwargs)
    return value


class Deferred(Tensor):
    """A tensor that stands for the values of a source, or for a view of them.

    Attributes:
        source: the batch norm's call, or the sum.
        steps: the view: functions that lead from the values of the source to those of this tensor.
        z: the input of the norm in the shape of this tensor.
        axis: the dimension that holds the channels; None: no dimension does.
        shortcut: of a sum, the shortcut in the shape of this tensor; None: this is no sum.
        still: the image that z repeats over its first dimension; None: z repeats nothing.
    """

    @staticmethod
    def of(
        source: Source,
        steps: Steps,
        z: Tensor,
        axis: int | None,
        shortcut: Tensor | None = None,
        still: Tensor | None = None,
    ) -> "Deferred":
        """Makes one."""
        grad = source.grad and torch.is_grad_enabled()
        if grad and source.needs_grad:
            state = [source, steps, z]
            self = _with_graph(*source.inputs, state)
        else:
            state = None
            self = _without_values(z)
        self.source, self.steps, self.z, self.axis, self.shortcut, self.still = source, steps, z, axis, shortcut, still
        self.graph_state, self.grad_mode, self.computed = state, grad, None
        source.derived.append(weakref.ref(self))
        return self

    @property
    def known(self) -> bool:
        """Whether the values exist."""
        return self.source.computed

    def value(self) -> Tensor:
        """The values, as a plain tensor."""
        if self.computed is None:
            values = self.source.value()
            with torch.set_grad_enabled(self.grad_mode):
                self.computed = _follow(self.steps, values)
        return self.computed

    def raw(self) -> Tensor:
        """The values without a graph, for code below autograd."""
        with torch.no_grad():
            return _follow(self.steps, self.source.raw())

    def forget(self) -> None:
        """Lets the next use read the values of the source again."""
        self.computed = None

    @property
    def keeps_order(self) -> bool:
        """Whether the values are those of the source in the same order, so that a reshape leads back to them."""
        return all(_HANDLERS[function] in (_reshaped, _contiguous, _clone) for function, _, _ in self.steps)

    def become(self, other: "Deferred") -> None:
        """Takes the values of another one, after an operation in place."""
        if self.graph_state is not None:
            self.graph_state[:] = [None, None, None]  # its autograd graph is that of the old values
        self.source, self.steps, self.z, self.axis = other.source, other.steps, other.z, other.axis
        self.shortcut, self.still, self.computed = other.shortcut, other.still, None
        other.source.derived.append(weakref.ref(self))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in _ASKS:
            asked = args[0]
            if type(asked) is Deferred and asked.computed is not None:  # it may have been changed in place
                return func(asked.computed, *args[1:], **(kwargs or {}))
            with _NoFunction():
                return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(func, args, kwargs)
            if result is not NotImplemented:
                return result
        _prepare_change(func, args, kwargs)
        return func(*_plain(args), **_plain(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Only code that does not look for __torch_function__ comes here, below autograd: it needs values, no graph.
        return func(*_plain(args, True), **_plain(kwargs or {}, True))


def plain(x):
    """The values of a Deferred; anything else itself."""
    return x.value() if type(x) is Deferred else x


def _plain(x, raw: bool = False):
    if type(x) is Deferred:
        return x.raw() if raw else x.value()
    if type(x) in (tuple, list):
        return type(x)(_plain(item, raw) for item in x)
    if type(x) is dict:
        return {key: _plain(item, raw) for key, item in x.items()}
    return x


# ---- the autograd graph, for code that does not ask for values through __torch_function__


def _without_values(z: Tensor) -> Deferred:
    if 0 in z.stride():  # a repeated image: torch's repeat copies it
        return Tensor._make_wrapper_subclass(Deferred, z.shape, dtype=z.dtype, device=z.device)
    return Tensor._make_wrapper_subclass(Deferred, z.shape, strides=z.stride(), dtype=z.dtype, device=z.device)


class _Graph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, weight, bias, shortcut, state):
        # Not by save_for_backward: hooks on saved tensors would see tensors that usually nobody uses.
        ctx.tensors, ctx.state = (z, weight, bias, shortcut), state
        return _without_values(state[2])

    @staticmethod
    def backward(ctx, grad):
        source, steps, _ = ctx.state
        if source is None:
            raise RuntimeError(
                "backward reached a batch norm's result that was changed in place after an operation without "
                "__torch_function__ (for example an autograd.Function) had used it: clone it first, or convert with "
                "from_spikingjelly(model, fuse=False)"
            )
        # A graph of its own: that of source.value() may have been freed by now.
        inputs = [None if t is None else t.detach() for t in ctx.tensors]
        needed = [t.requires_grad_() for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
        with torch.enable_grad():
            value = _follow(steps, source.from_inputs(*inputs))
        found = iter(torch.autograd.grad(value, needed, grad))
        return *(next(found) if need else None for need in ctx.needs_input_grad[:4]), None


_with_graph = super(torch.autograd.Function, _Graph).apply  # without the work that only torch.func needs


# ---- operations that need no values

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

_CHANGES = {"__setitem__", "__set__", "data_ptr", "numpy"}
_CHANGES |= {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")}


def _prepare_change(func, args, kwargs) -> None:
    """Before an operation that may change a Deferred in place: computes everything that depends on it."""
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _CHANGES or kwargs.get("inplace")
    in_place = in_place or any(x is True for x in args) or kwargs.get("out") is not None
    if not in_place:
        return
    for x in (*args[:1], kwargs.get("out"), kwargs.get("input")):
        if type(x) is Deferred:
            x.source.unshare()
            for other in x.source.living():
                other.value()


def _reshaped(func, args, kwargs):
    x = args[0] if args else None
    if not _is_open(x):
        return NotImplemented
    z = func(x.z, *args[1:], **kwargs)
    if z.dtype != x.z.dtype:  # view(dtype)
        return NotImplemented
    return _view(x, z, channel_axis(x.z.shape, x.axis, z.shape), func, args[1:], kwargs)


def _permuted(func, args, kwargs):
    x, axis = args[0] if args else None, None
    if not _is_open(x):
        return NotImplemented
    z = func(x.z, *args[1:], **kwargs)
    if x.axis is not None:  # move the numbers of the dimensions in the same way, to find the place of the channels
        numbers = torch.empty([1 + i for i in range(x.z.dim())], device="meta")
        axis = list(func(numbers, *args[1:], **kwargs).shape).index(1 + x.axis)
    return _view(x, z, axis, func, args[1:], kwargs)


def _contiguous(func, args, kwargs):
    x = args[0] if args else None
    if not _is_open(x):
        return NotImplemented
    if x.z.is_contiguous(**({"memory_format": args[1]} if len(args) > 1 else kwargs)):
        return x
    # An op takes z in any order. If the values are needed, they are copied then.
    return Deferred.of(x.source, (*x.steps, (func, args[1:], kwargs)), x.z, x.axis, x.shortcut, x.still)


def _clone(func, args, kwargs):
    x = args[0] if args else None
    if not _is_open(x) or kwargs or len(args) > 1:
        return NotImplemented
    return Deferred.of(x.source, (*x.steps, (func, (), {})), x.z, x.axis, x.shortcut, x.still)


def _reshaped_in_place(func, args, kwargs):
    x = args[0] if args else None
    if not _is_open(x):
        return NotImplemented
    view = _reshaped(getattr(Tensor, func.__name__.rstrip("_")), args, kwargs)
    with torch.no_grad(), _NoFunction(), torch._C._DisableTorchDispatch():
        func(*args, **kwargs)  # the sizes of x
    x.become(view)
    return x


def _repeated(func, args, kwargs):
    x = args[0] if args else None
    if not _is_open(x) or kwargs or x.shortcut is not None or x.still is not None or x.axis is None:
        return NotImplemented
    sizes = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]
    more = len(sizes) - x.z.dim()
    others = 1 if func is Tensor.repeat else -1
    if any(size != others for size in sizes[1:]) or sizes[0] < 1:
        return NotImplemented
    if more == 1 and func is Tensor.repeat:
        still, axis = x.z, x.axis + 1
    elif more == 0 and x.z.shape[0] == 1 and x.axis > 0:
        still, axis = x.z.squeeze(0), x.axis
    else:
        return NotImplemented
    z = still.unsqueeze(0).expand(sizes[0], *still.shape)
    return Deferred.of(x.source, (*x.steps, (func, args[1:], {})), z, axis, None, still)


def _view(x: Deferred, z: Tensor, axis: int | None, func, args, kwargs) -> Deferred:
    shortcut = None if x.shortcut is None else func(x.shortcut, *args, **kwargs)
    return Deferred.of(x.source, (*x.steps, (func, args, kwargs)), z, axis, shortcut)


def _is_open(x) -> bool:
    """Whether x is a Deferred without values that no neuron has used."""
    return type(x) is Deferred and not x.source.computed and not x.source.spent


def channel_axis(old: torch.Size, axis: int | None, new: torch.Size) -> int | None:
    """The dimension that holds the channels after a reshape from ``old`` to ``new``; None: no dimension does.

    Example:
        >>> channel_axis(torch.Size([8, 3, 5, 5]), 1, torch.Size([4, 2, 3, 25]))
        2
    """
    if axis is None:
        return None
    before = old[:axis].numel()
    place = 1
    for i, size in enumerate(new):
        if place == before and size == old[axis]:
            return i
        place *= size
    return None


def _sum(func, args, kwargs):
    if len(args) != 2 or kwargs:
        return NotImplemented
    terms = [x for x in args if isinstance(x, Tensor)]
    open_terms = sorted((x for x in terms if _is_open(x) and x.shortcut is None), key=lambda x: x.source.number)
    if len(terms) != 2 or terms[0] is terms[1] or not open_terms:
        return NotImplemented
    x = open_terms[-1]  # of two batch norms, the later one joins the op
    other = plain(terms[0] if x is terms[1] else terms[1])
    if type(other) is not Tensor or other.is_inference():
        return NotImplemented
    if other.shape != x.z.shape or other.dtype != x.z.dtype or other.device != x.z.device:
        return NotImplemented
    result = Deferred.of(Sum(x, other), (), x.z, x.axis, other, x.still)
    x.source.derived.append(weakref.ref(result))
    return result


def _sum_in_place(func, args, kwargs):
    x = args[0]
    # Nobody else may see the change: no other view, and nothing computed.
    if not _is_open(x) or x.shortcut is not None or any(other is not x for other in x.source.living()):
        return NotImplemented
    if type(args[-1]) is Deferred:  # else the sum might be the other one's
        args = (x, args[-1].value())
    result = _sum(func, args, kwargs)
    if result is not NotImplemented:
        x.become(result)
    return result


def _dropout(func, args, kwargs):
    named = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    idle = named.get("p", 0.5) == 0 or not named.get("training", True)
    return named["input"] if idle and type(named.get("input")) is Deferred else NotImplemented


_VIEWS = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
_PERMUTATIONS = ("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims")
_HANDLERS = {
    Tensor.view: _reshaped,
    Tensor.contiguous: _contiguous,
    **dict.fromkeys((Tensor.unsqueeze_, Tensor.squeeze_), _reshaped_in_place),
    **dict.fromkeys((Tensor.repeat, Tensor.expand), _repeated),
    **dict.fromkeys((Tensor.clone, torch.clone), _clone),
    **{getattr(kind, name): _reshaped for name in _VIEWS for kind in (Tensor, torch)},
    **{getattr(kind, name): _permuted for name in _PERMUTATIONS for kind in (Tensor, torch)},
    **dict.fromkeys((Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), _sum),
    **dict.fromkeys((Tensor.__iadd__, Tensor.add_), _sum_in_place),
    **dict.fromkeys((nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d), _dropout),
}
