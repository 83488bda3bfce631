"""Firing rates and gradient norms of the blocks during training: :class:`Monitor`, ``train.monitor``."""

import torch
from torch import Tensor, nn

from sewsnn.analysis.blocks import blocks_of, has_own_A, last_neuron

#: what is measured in each block and epoch; see :meth:`Monitor.row`
MEASURES = ("S", "A", "O", "active", "gradient")
_SUMS = ("S", "S_n", "A", "A_n", "O", "O_n", "active", "gradient", "gradient_n")
_AT = {name: i for i, name in enumerate(_SUMS)}


class Monitor:
    """Sums the spikes of S^l, A^l and O^l and the squared norm of dL/dS^l of each block over the training steps.

    Use it as a context around the training steps: inside it, hooks add to one tensor on the device of the network. No
    step copies anything to the host or waits for the device; :meth:`row` does, once per epoch. While the hooks are
    attached, the last op of each block runs as separate modules, because the fused op does not write A^l.

    Args:
        model: the network, on its device.

    Attributes:
        scale: factor of the loss whose gradient flows back, a tensor ``[]`` on the device; the norms are divided by it.
            Set it before backward. Default None: 1.

    Raises:
        ValueError: the network has no blocks.
    """

    def __init__(self, model: nn.Module):
        self.blocks = blocks_of(model)
        if not self.blocks:
            raise ValueError(f"{type(model).__name__} has no blocks of sewsnn.models")
        self.scale: Tensor | None = None
        device = next(model.parameters()).device
        self._sums = torch.zeros(len(self.blocks), len(_SUMS), dtype=torch.float64, device=device)
        self._hooks = []

    def __enter__(self) -> "Monitor":
        for i, (_, block) in enumerate(self.blocks):
            self._hooks.append(block.register_forward_hook(self._of_block(i)))
            if has_own_A(block):
                self._hooks.append(last_neuron(block).register_forward_hook(self._of_neuron(i)))
        return self

    def __exit__(self, *error) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _of_block(self, i: int):
        def hook(block, inputs, o_seq):
            (s_seq,) = inputs
            self._add(i, "S", s_seq.detach())
            self._add(i, "O", o_seq.detach())
            self._sums[i, _AT["active"]] += o_seq.detach().count_nonzero()
            if s_seq.requires_grad:
                s_seq.register_hook(lambda grad: self._add_gradient(i, grad))

        return hook

    def _of_neuron(self, i: int):
        def hook(neuron, inputs, a_seq):
            self._add(i, "A", a_seq.detach())

        return hook

    def _add(self, i: int, name: str, values: Tensor) -> None:
        self._sums[i, _AT[name]] += values.sum(dtype=torch.float64)
        self._sums[i, _AT[f"{name}_n"]] += values.numel()

    def _add_gradient(self, i: int, grad: Tensor) -> None:
        squared = torch.linalg.vector_norm(grad, dtype=torch.float64).square()
        if self.scale is not None:
            squared = squared / self.scale.double().square()
        finite = squared.isfinite()  # fp16 skips a step with infinite gradients
        self._sums[i, _AT["gradient"]] += torch.where(finite, squared, 0.0)
        self._sums[i, _AT["gradient_n"]] += finite

    @property
    def sums(self) -> Tensor:
        """The sums so far, ``[blocks, 9]`` in float64 on the device."""
        return self._sums

    def start(self) -> None:
        """Sets all sums to 0, at the start of an epoch."""
        self._sums.zero_()

    def row(self, sums: Tensor) -> dict[str, dict[str, float | None]]:
        """Computes the means of an epoch.

        Args:
            sums: :attr:`sums`, added up over all processes.

        Returns:
            ``{block: {"S", "A", "O", "active", "gradient"}}``: spikes per neuron and time-step of S^l, A^l (None for a
            Spiking block) and O^l (before a pooling); the share of O^l that is not 0; and the root mean square over the
            steps of the norm ||dL/dS^l||, where L is the mean loss of the batch of one process.
        """
        found = {}
        for (name, _), values in zip(self.blocks, sums.tolist(), strict=True):
            at = dict(zip(_SUMS, values, strict=True))
            found[name] = {
                "S": _mean(at["S"], at["S_n"]),
                "A": _mean(at["A"], at["A_n"]),
                "O": _mean(at["O"], at["O_n"]),
                "active": _mean(at["active"], at["O_n"]),
                "gradient": None if not at["gradient_n"] else (at["gradient"] / at["gradient_n"]) ** 0.5,
            }
        return found


def _mean(total: float, number: float) -> float | None:
    return total / number if number else None
