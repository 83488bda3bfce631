"""The operations between batch norm and neuron that a :class:`Deferred` records instead of computing its values."""

import weakref

import torch
from torch import Tensor, nn

from sewsnn.convert.deferred import HANDLERS, IN_ORDER, Deferred, plain
from sewsnn.convert.sources import Sum
from sewsnn.layers.pooling import pooled_input
from sewsnn.ops.max_pool import Window, runs

_NoFunction = torch._C.DisableTorchFunctionSubclass


def _of_open(handler):
    """A handler ``(func, args, kwargs)`` from ``handler(x, func, args, kwargs)``, whose args are those after x.

    If x, the first argument, is not open, the operation needs its values.
    """

    def handle(func, args, kwargs):
        if not args or not is_open(args[0]):
            return NotImplemented
        return handler(args[0], func, args[1:], kwargs)

    return handle


@_of_open
def _reshaped(x, func, args, kwargs):
    like = func(x.like, *args, **kwargs)  # raises the error of a view that these strides do not allow
    if like.dtype != x.z.dtype:  # view(dtype)
        return NotImplemented
    # z may have other strides than the values.
    on_z = Tensor.reshape if func is Tensor.view and x.like is not x.z else func
    z = like if x.like is x.z else on_z(x.z, *args, **kwargs)
    return _view(x, z, channel_axis(x.z.shape, x.axis, z.shape), like, on_z, func, args, kwargs)


@_of_open
def _permuted(x, func, args, kwargs):
    like = func(x.like, *args, **kwargs)
    z = like if x.like is x.z else func(x.z, *args, **kwargs)
    axis = None
    if x.axis is not None:  # move the numbers of the dimensions in the same way, to find the place of the channels
        numbers = torch.empty([1 + i for i in range(x.z.dim())], device="meta")
        axis = list(func(numbers, *args, **kwargs).shape).index(1 + x.axis)
    return _view(x, z, axis, like, func, func, args, kwargs)


@_of_open
def _contiguous(x, func, args, kwargs):
    if x.like.is_contiguous(**({"memory_format": args[0]} if args else kwargs)):
        return x
    # An op takes z in any order. If the values are needed, they are copied then.
    return _copied(x, func, args, kwargs)


@_of_open
def _clone(x, func, args, kwargs):
    return NotImplemented if args or kwargs else _copied(x, func, (), {})


def _copied(x: Deferred, func, args, kwargs) -> Deferred:
    like = func(x.like if x.source.watched else _meta(x.like), *args, **kwargs)
    return Deferred.of(x.source, (*x.steps, (func, args, kwargs)), x.z, x.axis, like, x.shortcut, x.still, x.statistics)


def _meta(like: Tensor) -> Tensor:
    """Sizes and strides without memory."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


@_of_open
def _reshaped_in_place(x, func, args, kwargs):
    view = _reshaped(getattr(Tensor, func.__name__.rstrip("_")), (x, *args), kwargs)
    with torch.no_grad(), _NoFunction(), torch._C._DisableTorchDispatch():
        func(x, *args, **kwargs)  # changes the sizes that x shows
    x.become(view)  # after the change, which counts as one of x; become() notes the count
    return x


@_of_open
def _repeated(x, func, args, kwargs):
    if kwargs or x.shortcut is not None or x.still is not None or x.statistics is not None or x.axis is None:
        return NotImplemented
    sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
    more = len(sizes) - x.z.dim()
    others = 1 if func is Tensor.repeat else -1
    if not sizes or any(size != others for size in sizes[1:]) or sizes[0] < 1:
        return NotImplemented
    if more == 1 and func is Tensor.repeat:
        still, axis = x.z, x.axis + 1
    elif more == 0 and x.z.shape[0] == 1 and x.axis > 0:
        still, axis = x.z.squeeze(0), x.axis
    else:
        return NotImplemented
    z = still.unsqueeze(0).expand(sizes[0], *still.shape)
    like = func(x.like if x.source.watched else _meta(x.like), *args)
    return Deferred.of(x.source, (*x.steps, (func, args, {})), z, axis, like, None, still)


def _view(x: Deferred, z: Tensor, axis: int | None, like: Tensor, on_z, func, args, kwargs) -> Deferred:
    shortcut = None if x.shortcut is None else on_z(x.shortcut, *args, **kwargs)
    return Deferred.of(x.source, (*x.steps, (func, args, kwargs)), z, axis, like, shortcut, None, x.statistics)


def is_open(x) -> bool:
    """Whether x is a Deferred that nobody has used, and gradients are enabled as they were."""
    if type(x) is not Deferred or x.source.spent or x.source.touched or (x.source.computed and not x.source.watched):
        return False
    if x.has_own_graph:
        return False
    # Without gradients, the result is a tensor without a graph, also for an autograd.Function that returns it.
    return torch.is_grad_enabled() or not x.source.grad


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
    open_terms = sorted((x for x in terms if is_open(x) and x.shortcut is None), key=lambda x: x.source.number)
    if len(terms) != 2 or terms[0] is terms[1] or not open_terms:
        return NotImplemented
    x = open_terms[-1]  # of two batch norms, the later one joins the op
    other = plain(terms[0] if x is terms[1] else terms[1])
    if type(other) is not Tensor or other.is_inference():
        return NotImplemented
    if other.shape != x.z.shape or other.dtype != x.z.dtype or other.device != x.z.device:
        return NotImplemented
    if x.source.watched:
        like = func(*(plain(term) for term in args))
    else:  # the sum has the strides that torch gives it
        like = _meta(x.like) + _meta(other) if other.stride() != x.like.stride() else x.like
    source = Sum(x, other, like if x.source.watched else None)
    result = Deferred.of(source, (), x.z, x.axis, like, other, x.still, x.statistics)
    x.source.derived.append(weakref.ref(result))
    return result


def _sum_in_place(func, args, kwargs):
    x = args[0]
    # Nobody else may see the change: no other view, and nothing computed.
    if not is_open(x) or x.shortcut is not None or any(other is not x for other in x.source.living()):
        return NotImplemented
    if type(args[-1]) is Deferred:  # else the sum might be the other one's
        args = (x, args[-1].value())
    result = _sum(func, args, kwargs)
    if result is not NotImplemented:
        x.become(result)
    return result


@_of_open
def _pooled(x, func, args, kwargs):
    window = Window.of(*args, **kwargs)
    if x.shortcut is not None or x.still is not None or x.statistics is not None or x.axis != x.z.dim() - 3:
        return NotImplemented
    if window is None or not runs(x.z, window):
        return NotImplemented
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return NotImplemented  # activation checkpointing must find the same operations again
    try:
        n = x.source.call.n
    except RuntimeError:  # of a watched call
        return NotImplemented
    z, n = pooled_input(x.z, n, window)
    like = func(x.like if x.source.watched else _meta(x.like), *args, **kwargs)
    return Deferred.of(x.source, (*x.steps, (func, args, kwargs)), z, x.axis, like, statistics=n.statistics)


def _dropout(func, args, kwargs):
    named = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    idle = named.get("p", 0.5) == 0 or not named.get("training", True)
    return named["input"] if idle and is_open(named.get("input")) else NotImplemented


_VIEWS = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
_PERMUTATIONS = ("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims")
HANDLERS |= {
    Tensor.view: _reshaped,
    Tensor.contiguous: _contiguous,
    **dict.fromkeys((Tensor.unsqueeze_, Tensor.squeeze_), _reshaped_in_place),
    **dict.fromkeys((Tensor.repeat, Tensor.expand), _repeated),
    **dict.fromkeys((Tensor.clone, torch.clone), _clone),
    **{getattr(kind, name): _reshaped for name in _VIEWS for kind in (Tensor, torch)},
    **{getattr(kind, name): _permuted for name in _PERMUTATIONS for kind in (Tensor, torch)},
    **dict.fromkeys((Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), _sum),
    **dict.fromkeys((Tensor.__iadd__, Tensor.add_), _sum_in_place),
    **dict.fromkeys((nn.functional.max_pool2d, torch.max_pool2d), _pooled),
    **dict.fromkeys((nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d), _dropout),
}
IN_ORDER |= {function for function, handler in HANDLERS.items() if handler in (_reshaped, _contiguous, _clone)}
