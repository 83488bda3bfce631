"""Batch statistics over several processes."""

from torch import nn

from sewsnn.layers.norm import Norm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync_batchnorm(model: nn.Module, process_group=None) -> nn.Module:
    """Lets the batch norms that :func:`sewsnn.layers.bn_neuron` runs share their statistics over a process group.

    Statistics and their gradients are then taken over all processes of the group, as ``nn.SyncBatchNorm`` does. This
    also works on the CPU (gloo), where ``nn.SyncBatchNorm`` does not.

    The function marks the modules in place. Their classes and the names in ``state_dict`` do not change. Nothing
    changes in evaluation mode or while ``torch.distributed`` is not initialised. A norm that runs as a module of its
    own (because of hooks or ``fused=False``) cannot share statistics this way and raises RuntimeError in training.

    Args:
        model: the network; its ``nn.BatchNorm1d/2d/3d`` and :class:`BNNeuron` modules are marked.
        process_group: the group that shares statistics. Default None: all processes.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> net = convert_sync_batchnorm(net)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, (*_NORMS, Norm)):
            module.process_group = "world" if process_group is None else process_group
    return model
