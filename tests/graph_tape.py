"""A stand-in for CUDA graphs that works on any device: it records torch's operations and repeats them.

As with a CUDA graph, the capture changes no tensor, a replay runs no Python of the step, every operation reads and
writes the memory that it had in the capture, and operations that wait for the device or copy from the host are refused.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
#: they read a value on the host, or copy one from it
REFUSED = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.lift_fresh}


class Tape(TorchDispatchMode):
    """Records the operations within the context, and restores all tensors from before it at its end."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self._own, self._before = {}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket in REFUSED:
            raise RuntimeError(f"{function} is not permitted when stream is capturing")
        schema = function._schema
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(args[i] if i < len(args) else kwargs.get(argument.name))
        result = function(*args, **kwargs)
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        for tensor in _made(function, result):
            if tensor.untyped_storage().data_ptr() not in given:
                self._own[tensor.untyped_storage().data_ptr()] = tensor
        self.calls.append((function, args, kwargs, _made(function, result)))
        return result

    def _keep(self, written):
        for tensor in _tensors(written):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()

    def restore(self):
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    def replay(self):
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for function, args, kwargs, made in self.calls:
                for old, new in zip(made, _made(function, function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _made(function, result) -> list[Tensor]:
    """The results of an operation that are not arguments or views of them."""
    returns = function._schema.returns
    results = result if len(returns) > 1 else (result,)
    return [x for r, part in zip(returns, results, strict=False) if r.alias_info is None for x in _tensors(part)]


def _tensors(value) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


class Recorder:
    """Has the methods of :class:`sewsnn.train.graph.CudaGraphs`. ``tapes`` are the graphs, ``warm_ups`` counts."""

    def __init__(self):
        self.tapes, self.warm_ups, self.waits = [], 0, 0

    def warm_up(self, work):
        self.warm_ups += 1
        work()

    def capture(self, work):
        random, tape = torch.get_rng_state(), Tape()
        try:
            with tape:
                work()
        finally:
            tape.restore()
            torch.set_rng_state(random)
        self.tapes.append(tape)
        return tape.replay

    def wait(self):
        self.waits += 1
