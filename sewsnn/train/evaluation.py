"""Evaluation on the test set, every sample once."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sewsnn.data import DataSource
from sewsnn.errors import DataError
from sewsnn.progress import watched
from sewsnn.train.distributed import Processes
from sewsnn.train.prefetch import Prefetch
from sewsnn.train.step import autocast


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: DataSource,
    device: torch.device,
    processes: Processes,
    amp: str = "off",
    channels_last: bool = False,
    after_batch: Callable[[], None] = lambda: None,
    title: str = "evaluation",
) -> dict[str, float]:
    """Cross entropy of the mean logits, top-1 and top-5 accuracy in [0, 1] over the whole test set: each process takes
    its own part of it, and no sample is padded or taken twice. ``after_batch`` is called after each. The first process
    shows a bar with the ``title``.

    Returns:
        ``loss``, ``accuracy``, ``accuracy5``, ``samples``. The model is left in evaluation mode.

    Raises:
        DataError: there is not one test sample.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    batches = Prefetch(source.test_batches(), device, source.to_float, channels_last)
    for x, y in watched(batches, title, source.test_steps, quiet=not processes.is_first):
        with autocast(device, amp):
            logits = model(x).double()
        top = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
        loss = cross_entropy(logits, y, reduction="sum")
        sums[:3] += torch.stack([loss, top[:, 0].sum().double(), top.any(1).sum().double()])
        sums[3] += len(y)
        after_batch()
    loss, top1, top5, samples = processes.sum(sums).tolist()
    if not samples:
        raise DataError("data: not one test sample could be read, so there is no accuracy")
    return {"loss": loss / samples, "accuracy": top1 / samples, "accuracy5": top5 / samples, "samples": int(samples)}
