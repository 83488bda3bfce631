"""What a captured training step takes for granted: :class:`Fixed`."""

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

_NUMBERS = (bool, int, float)


class Fixed:
    """The memory and the settings that a training step uses when it is captured. A replay goes on using them, whatever
    the network and the optimizer hold by then, so they are compared before each replay.

    The object keeps references to the memory. Even a replay that nobody should have started writes to no memory that
    belongs to other tensors by then.

    Args:
        model: the network.
        average: the moving average of its weights, or None.
        optimizer: the optimizer. The learning rate of each group must be a tensor.
        scaler: the GradScaler.

    Raises:
        RuntimeError: the learning rate of a group is not a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        average: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ):
        self._optimizer, self._scaler = optimizer, scaler
        networks = {"model": model} if average is None else {"model": model, "average": average}
        modules = [(f"{key}.{name}", m) for key, network in networks.items() for name, m in network.named_modules()]
        # Python dictionaries are compared faster than modules are walked.
        self._parts = {f"{name}.".replace("..", "."): (m._parameters, m._buffers, m._modules) for name, m in modules}
        self._dictionaries = list(chain.from_iterable(self._parts.values()))
        # Whether the average is in evaluation mode does not matter.
        self._of_layers: list[tuple[str, dict, itemgetter]] = []
        for name, module in model.named_modules():
            keys = [key for key, value in module.__dict__.items() if type(value) in _NUMBERS]
            self._of_layers.append((f"model.{name}", module.__dict__, itemgetter(*keys, "training")))
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._check_rates()
        named = list(zip(self._names_of_values(), self._values(), strict=True))
        self._names = [name for name, _ in named]
        self._objects = [value for _, value in named]  # as long as they live, no other object has the same id
        self._ids = list(map(id, self._objects))
        self._tensors = [value for value in self._objects if isinstance(value, Tensor)]
        self._memory = [tensor.detach() for tensor in self._tensors]
        self._addresses = self._present_addresses()
        self._numbers, self._settings = self._present_numbers(), self._present_settings()

    def changed(self) -> str | None:
        """Returns the name of something that has been replaced or set to another value, or None.

        Raises:
            RuntimeError: the learning rate of a group is not the same tensor any more.
        """
        self._check_rates()
        ids = list(map(id, self._values()))
        if ids != self._ids:
            different = [name for name, a, b in zip(self._names, self._ids, ids, strict=False) if a != b]
            return different[0] if different else "the number of tensors"
        if (addresses := self._present_addresses()) != self._addresses:
            names = [n for n, value in zip(self._names, self._objects, strict=True) if isinstance(value, Tensor)]
            return next(n for n, a, b in zip(names, self._addresses, addresses, strict=True) if a != b)
        if (numbers := self._present_numbers()) != self._numbers:
            names = [f"a setting of {name}" for name, _, _ in self._of_layers]
            names += ["requires_grad of a parameter"] * len(self._parameters)
            return next(name for name, a, b in zip(names, self._numbers, numbers, strict=True) if a != b)
        if self._present_settings() != self._settings:
            return "a setting of the optimizer or of the loss scale"
        return None

    def _values(self) -> Iterator[Any]:
        """Returns the objects that must stay the same."""
        groups = self._optimizer.param_groups
        return chain(
            chain.from_iterable(map(dict.values, self._dictionaries)),
            chain.from_iterable(map(dict.values, self._optimizer.state.values())),
            map(attrgetter("grad"), self._parameters),
            chain.from_iterable(group["params"] for group in groups),
            (self._scaler._scale, self._scaler._growth_tracker),
        )

    def _names_of_values(self) -> Iterable[str]:
        for name, parts in self._parts.items():
            yield from (name + key for key in chain.from_iterable(parts))
        for state in self._optimizer.state.values():
            yield from (f"the optimizer's {key}" for key in state)
        yield from ["a gradient"] * len(self._parameters)
        yield from ["a parameter of the optimizer"] * sum(len(g["params"]) for g in self._optimizer.param_groups)
        yield from ["the loss scale"] * 2

    def _present_addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def _present_numbers(self) -> list[Any]:
        """Returns the numbers of the layers, as ``training`` or ``momentum``, and which parameters have gradients."""
        numbers = [numbers_of(attributes) for _, attributes, numbers_of in self._of_layers]
        return numbers + list(map(attrgetter("requires_grad"), self._parameters))

    def _present_settings(self) -> list[Any]:
        """Returns the numbers that kernels get as arguments."""
        left_out = ("params", "lr", "initial_lr", "capturable")
        groups = [{k: v for k, v in group.items() if k not in left_out} for group in self._optimizer.param_groups]
        scaler = self._scaler
        return [*groups, scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()]

    def _check_rates(self) -> None:
        for i, (rate, group) in enumerate(zip(self._rates, self._optimizer.param_groups, strict=False)):
            if group["lr"] is not rate or not isinstance(rate, Tensor):
                raise RuntimeError(
                    f"train.cuda_graph: the learning rate of parameter group {i} must stay the tensor that the CUDA "
                    "graph reads; change its value with sewsnn.train.schedule.set_lr or group['lr'].fill_(value)"
                )
