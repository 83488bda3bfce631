"""Evaluation on the test set; every sample counts once."""

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
    """Computes loss and accuracy over the whole test set. Each process takes its own share; no sample is padded or
    counted twice. Rank 0 shows a progress bar.

    Args:
        model: the network; it is left in evaluation mode.
        source: the data set.
        device: the device of the model.
        processes: the process group.
        amp: autocast: ``off`` (default), ``bf16`` or ``fp16``.
        channels_last: use the channels_last memory format for the input (default False).
        after_batch: called after each batch.
        title: text of the progress bar.

    Returns:
        A dictionary: ``loss`` (cross entropy of the logits' mean over time), ``accuracy`` and ``accuracy5`` (top-1 and
            top-5, in [0, 1]), ``samples``.

    Raises:
        DataError: no test sample could be read.
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
        raise DataError("data: no test sample could be read, so the accuracy is undefined")
    return {"loss": loss / samples, "accuracy": top1 / samples, "accuracy5": top5 / samples, "samples": int(samples)}
