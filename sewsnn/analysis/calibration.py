"""Running statistics of batch norms for networks that were never trained: :func:`calibrate`."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sewsnn.analysis.watching import evaluating, rest
from sewsnn.layers.norm import Norm


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Gives every batch norm the mean statistics of some batches.

    A fresh network has running mean 0 and running variance 1, so in evaluation mode its batch norms do not normalise.
    After this call

        running_mean = mean over batches of the batch's mean
        running_var = mean over batches of the batch's variance (unbiased, as torch keeps it)

    Every batch norm normalises by the statistics of the batch meanwhile, as in training; all other modules are in
    evaluation mode. ``num_batches_tracked`` becomes the number of calls. Everything else is restored afterwards: the
    mode of every module, the momentum of the norms, the states of the neurons. The call overwrites the running
    statistics, so use it only for a network whose statistics nobody needs.

    Args:
        model: a network; its ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` and :class:`sewsnn.layers.BNNeuron` that
            have running statistics are changed.
        batches: inputs with which the model is called, one after the other, such as ``[N, C, H, W]``.

    Returns:
        The number of batches.

    Raises:
        ValueError: there is no batch, or a channel has only one value in a batch. After an error in any call the
            running statistics are those from before.
        RuntimeError: an input of a norm is not finite (on the CPU).

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> calibrate(net, [torch.rand(8, 3, 32, 32)])
        1
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("batches is empty: there are no statistics to take")
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm | Norm) and module.track_running_stats and module.running_mean is not None
    ]
    before = [(norm.momentum, {name: value.clone() for name, value in _statistics(norm)}) for norm in norms]
    number = 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the cumulative mean
                norm.training = True
            for x in chain([first], batches):
                rest(model, whole_sequences=True)
                model(x)
                number += 1
    except BaseException:
        for norm, (_, statistics) in zip(norms, before, strict=True):
            for name, value in _statistics(norm):
                value.copy_(statistics[name])
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    return number


def _statistics(norm: nn.Module) -> list[tuple[str, Tensor]]:
    return list(norm.named_buffers(recurse=False))
