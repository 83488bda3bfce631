"""Batch norms as the ops read them: statistics, weight and bias, and the running statistics that they update."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sewsnn.ops import bn as native
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import check_number


class Norm(_NormBase):
    """Parameters and buffers of ``nn.BatchNorm2d`` for a layer that does more than normalise.

    It is not a ``_BatchNorm``: ``nn.SyncBatchNorm.convert_sync_batchnorm`` would replace a ``_BatchNorm`` by a plain
    norm.
    """

    def normalise(self, z: Tensor) -> Tensor:
        """Batch norm without neuron and connection, computed by torch.

        Args:
            z: ``[N, C, ...]``.

        Returns:
            The normalised tensor ``[N, C, ...]``.
        """
        factor = self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if factor is None else factor
        training = self.training or self.running_mean is None
        keep = not self.training or self.track_running_stats
        running = (self.running_mean, self.running_var) if keep else (None, None)
        return nn.functional.batch_norm(z, *running, self.weight, self.bias, training, factor or 0.0, self.eps)


def group_of(norm: nn.Module):
    """The process group with which the norm shares its statistics; None: this process only."""
    group = norm.__dict__.get("process_group")
    wanted = isinstance(norm, nn.SyncBatchNorm) or group is not None
    if not (wanted and norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if group is None or group == "world" else group
    return group if dist.get_world_size(group) > 1 else None


def tensors_of(norm: nn.Module) -> tuple[Tensor | None, ...]:
    """Weight, bias, running mean, running variance and number of calls of a norm, each None if the norm has none.

    It avoids ``nn.Module.__getattr__``, which takes as long as a small kernel.
    """
    parameters, buffers = norm._parameters, norm._buffers
    try:
        running = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        return parameters["weight"], parameters["bias"], *running
    except KeyError:  # for example a parametrised weight
        return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked


def check_norm(norm: nn.Module, z: Tensor, T: int) -> None:
    """Raises an error unless the ops can take this norm: eps and momentum are constants (the ops take numbers, so a
    Parameter would get no gradient), the device is that of z, and each channel of a batch has a variance."""
    for name in ("eps", "momentum"):
        value = getattr(norm, name)
        if name == "momentum" and value is None:
            continue
        if not isinstance(value, Tensor):
            check_number(f"bn.{name}", value)
        elif value.requires_grad or value.numel() != 1:
            raise TypeError(f"bn.{name} must be a number, got {type(value).__name__}; it is a constant, not trained")
    one = norm.running_mean if norm.weight is None else norm.weight
    if one is not None and one.device != z.device:
        raise ValueError(f"bn must be on the device of z_seq, {z.device}, got {one.device}")
    of_batch = norm.training or norm.running_mean is None
    if of_batch and z.numel() <= z.shape[1 if T else 2] and group_of(norm) is None:
        raise ValueError(f"z_seq must have more than one value per channel in training, got shape {list(z.shape)}")


OneCall = tuple[Tensor | None, Tensor | None, native.Running | None]  # weight, bias, buffers to update


def for_one_call(norm: nn.Module, state: torch.dtype) -> OneCall | None:
    """Returns a norm's arguments of ``bn_neuron_train``. None: the norm needs several calls, because it shares its
    statistics or takes the running ones, its tensors are not contiguous or have another dtype than the state, or eps or
    momentum is no float."""
    weight, bias, mean, var, tracked = tensors_of(norm)
    training = norm.training
    if not (training or mean is None) or group_of(norm) is not None or type(norm.eps) is not float:
        return None
    if weight is not None and not (weight.dtype == state and weight.is_contiguous()):
        return None
    if bias is not None and not (bias.dtype == state and bias.is_contiguous()):
        return None
    if mean is None or not training or not norm.track_running_stats:
        return weight, bias, None
    momentum = norm.momentum
    plain = type(momentum) is float and mean.dtype == var.dtype == state and mean.is_contiguous()
    if not (plain and var.is_contiguous() and (tracked is None or tracked.dtype == torch.int64)):
        return None
    return weight, bias, (mean, var, tracked, momentum)


class Normalisation(NamedTuple):
    """A batch norm as the arguments of the ops."""

    statistics: Tensor | None = None  # [2, C] mean and variance; None: no norm
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    training: bool = False  # the statistics are those of the batch
    count: Tensor | float = 1.0  # number of values that the statistics average
    group: object = None


def normalisation(norm: nn.Module | None, z: Tensor, T: int) -> Normalisation:
    """Statistics of z (in training) or the running statistics, with weight and bias, in the dtype of the state.

    :func:`check_norm` has checked the norm.
    """
    if norm is None:
        return Normalisation()
    state = state_dtype(z.dtype)
    weight, bias, mean, var, _ = tensors_of(norm)
    if weight is not None and not (weight.dtype == state and weight.is_contiguous()):
        weight = weight.to(state).contiguous()
    if bias is not None and not (bias.dtype == state and bias.is_contiguous()):
        bias = bias.to(state).contiguous()
    if not (norm.training or mean is None):
        return Normalisation(torch.stack([mean, var]).to(state), weight, bias, norm.eps)
    group = group_of(norm)
    statistics, count = native.moments(z, T, group)
    return Normalisation(statistics, weight, bias, norm.eps, True, count, group)


def update_running(norm: nn.Module | None, n: Normalisation) -> None:
    """Updates the running statistics after a forward that succeeded."""
    if not (n.training and norm.training and norm.track_running_stats and norm.running_mean is not None):
        return
    momentum, tracked = norm.momentum, norm.num_batches_tracked
    if tracked is not None:
        tracked.add_(1)
    if momentum is None:  # cumulative average; without num_batches_tracked torch leaves the statistics unchanged
        momentum = 0.0 if tracked is None else 1 / tracked.to(n.statistics.dtype)
    native.update_running(n.statistics, n.count, momentum, norm.running_mean, norm.running_var)
