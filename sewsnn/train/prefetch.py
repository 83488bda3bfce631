"""Copies batches to the device ahead of their use."""

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


class Prefetch:
    """Iterates over ``batches`` on ``device``, in the form that the network takes. On CUDA the next batch is copied on
    a separate stream while the network computes with the present one.

    Args:
        batches: ``(samples, labels)`` on the CPU.
        device: the device of the network.
        to_float: converts samples on the device to the input of the network.
        channels_last: convert images, or the frames of sequences, to the channels_last memory format (default False).

    Attributes:
        waited: seconds that the caller has waited for data so far.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: torch.device,
        to_float: Callable[[Tensor], Tensor],
        channels_last: bool = False,
    ):
        self.device, self.to_float, self.channels_last = device, to_float, channels_last
        self.waited = 0.0
        self._batches = iter(batches)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self._next()
        while batch is not None:
            yield self._ready(*batch)
            batch = self._next()

    def _next(self) -> tuple[Tensor, Tensor] | None:
        started = time.perf_counter()
        batch = next(self._batches, None)
        self.waited += time.perf_counter() - started
        if batch is None or self._stream is None:
            return batch and tuple(part.to(self.device) for part in batch)
        with torch.cuda.stream(self._stream):
            return tuple(part.to(self.device, non_blocking=True) for part in batch)

    def _ready(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._stream is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._stream)
            for part in (x, y):
                part.record_stream(stream)
        x = self.to_float(x)
        return (to_channels_last(x) if self.channels_last else x), y


def to_channels_last(x: Tensor) -> Tensor:
    """Converts images ``[N, C, H, W]`` or the frames of sequences ``[T, N, C, H, W]`` to channels_last."""
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
