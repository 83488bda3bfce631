"""Sums over an epoch, kept on the device, so that a training step does not wait for them."""

import torch
from torch import Tensor

from sewsnn.train.distributed import Processes

NEVER = 2**62  #: a step number larger than any other
START = {
    "samples": 0,
    "loss": 0.0,
    "top1": 0,
    "top5": 0,
    "seconds": 0.0,
    "waited": 0.0,
}  #: the sums at the start of an epoch


class Sums:
    """The sums of loss, correct predictions and samples of an epoch so far.

    Args:
        device: the device of the logits.
        values: the sums of a resumed run, as :meth:`values` returned them; None (default): zeros.

    Attributes:
        steps: the steps of the epoch so far. The caller sets it, and ``seconds`` and ``waited``.
    """

    def __init__(self, device: torch.device, values: dict | None = None):
        values = values or START
        self.seconds, self.waited = values["seconds"], values["waited"]
        numbers = [values[name] for name in ("samples", "loss", "top1", "top5")]
        self._sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        self._bad = torch.tensor(NEVER, device=device)
        self.steps = 0

    def add(self, loss: Tensor, logits: Tensor, y: Tensor, step: int | Tensor) -> None:
        """Adds a batch: mean loss ``[]``, ``logits [N, classes]`` and class indices ``y [N]``. ``step`` may be a tensor
        on the device. It changes nothing but tensors, in place, so a CUDA graph can repeat it."""
        top = logits.topk(min(5, logits.shape[1])).indices == y[:, None]  # [N, 5]
        batch = torch.stack([loss.double() * len(y), top[:, 0].sum().double(), top.any(1).sum().double()])
        self._sums[0] += len(y)
        self._sums[1:] += batch
        torch.where(loss.isfinite(), self._bad, self._bad.clamp(max=step), out=self._bad)

    def move_to(self, other: "Sums") -> None:
        """Keeps the values in the tensors of ``other`` from now on; ``other`` must not be used any more."""
        other._sums.copy_(self._sums)
        other._bad.copy_(self._bad)
        self._sums, self._bad = other._sums, other._bad

    def first_bad(self) -> int:
        """Returns the first step with an infinite or NaN loss, or :data:`NEVER`."""
        return int(self._bad)

    def values(self, processes: Processes) -> dict:
        """Returns the sums over all processes, on all of them; the seconds are those of this process."""
        samples, loss, top1, top5 = processes.sum(self._sums).tolist()
        return {
            "samples": int(samples),
            "loss": loss,
            "top1": int(top1),
            "top5": int(top5),
            "seconds": self.seconds,
            "waited": self.waited,
        }
