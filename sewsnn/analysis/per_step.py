"""The accuracy of a network after each time-step, and the latency of a forward pass."""

import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sewsnn.analysis.watching import evaluating
from sewsnn.neuron import BaseNode


class PerStep(NamedTuple):
    """Results after the first t = 1 ... T time-steps; every list has one entry per t.

    Attributes:
        samples: number of samples.
        loss: cross entropy of the mean of the first t logits.
        accuracy: top-1 accuracy in [0, 1].
        accuracy5: top-5 accuracy in [0, 1].
        firing_rates: module name -> spikes per neuron and time-step.
    """

    samples: int
    loss: list[float]
    accuracy: list[float]
    accuracy5: list[float]
    firing_rates: dict[str, list[float]]


@torch.no_grad()
def evaluate_per_step(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> PerStep:
    """Evaluates a network after every number of time-steps t = 1 ... T in one pass.

    In evaluation mode, the first t time-steps of a network do not depend on later ones. The mean of the first t logits
    is therefore the output for a still image that is shown t times, or for the first t frames of a sequence.

    Args:
        model: a network of :mod:`sewsnn.models`; ``forward(x, return_seq=True)`` returns logits ``[T, N, classes]``.
            The network is restored afterwards.
        batches: pairs ``(x, labels [N])`` on the model's device. All sequences have the same T.

    Returns:
        :class:`PerStep` with one entry per t in each list.

    Raises:
        ValueError: there is no batch.
    """
    spikes: dict[str, Tensor] = {}
    elements: dict[str, int] = {}

    def counter(name):
        def hook(module, inputs, s_seq):
            spikes[name] = spikes.get(name, 0) + s_seq.flatten(1).sum(1, dtype=torch.float64)
            elements[name] = elements.get(name, 0) + s_seq[0].numel()

        return hook

    sums, samples = None, 0
    nodes = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseNode)]
    with evaluating(model) as hooks:
        hooks += [module.register_forward_hook(counter(name)) for name, module in nodes]
        for x, y in batches:
            logits_seq = model(x, return_seq=True).double()
            steps = torch.arange(1, len(logits_seq) + 1, device=logits_seq.device)
            logits = logits_seq.cumsum(0) / steps[:, None, None]  # [T, N, classes], of the first t
            top = logits.topk(min(5, logits.shape[2])).indices == y[:, None]  # [T, N, 5]
            loss = torch.stack([cross_entropy(of_t, y, reduction="sum") for of_t in logits])
            batch = torch.stack([loss, top[:, :, 0].sum(1).double(), top.any(2).sum(1).double()])
            sums = batch if sums is None else sums + batch
            samples += len(y)
    if sums is None:
        raise ValueError("batches is empty: there is nothing to evaluate")
    rates = {
        name: (spikes[name].cumsum(0) / (elements[name] * steps)).tolist() for name, _ in nodes if elements.get(name)
    }
    return PerStep(samples, *(sums / samples).tolist(), rates)


@torch.no_grad()
def latency(model: nn.Module, x: Tensor, T: int, repeats: int = 10) -> float:
    """Median time in seconds of one forward pass over T time-steps, in evaluation mode.

    Two warm-up calls come before the measurement.

    Args:
        model: a network of :mod:`sewsnn.models`. It is restored afterwards.
        x: still images ``[N, C, H, W]``, or sequences ``[>= T, N, C, H, W]``; only the first T frames are used.
        T: number of time-steps.
        repeats: number of calls that are measured. Default 10.

    Returns:
        Seconds.

    Raises:
        ValueError: a sequence has fewer than T frames.
    """
    if x.dim() == 5 and len(x) < T:
        raise ValueError(f"x must have at least T = {T} frames, got {len(x)}")
    before = model.T
    x = x[:T] if x.dim() == 5 else x
    times = []
    with evaluating(model):
        model.T = T
        try:
            for call in range(repeats + 2):
                _wait(x.device)
                started = time.perf_counter()
                model(x)
                _wait(x.device)
                if call > 1:
                    times.append(time.perf_counter() - started)
        finally:
            model.T = before
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
