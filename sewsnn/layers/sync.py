"""Batch statistics over several processes."""

from torch import nn

from sewsnn.layers.fusing import Norm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync_batchnorm(model: nn.Module, process_group=None) -> nn.Module:
    """Lets every batch norm of ``model`` that :func:`sewsnn.layers.bn_neuron` runs take its statistics, and their
    gradients, over all processes of a group, as ``nn.SyncBatchNorm`` does; on the CPU (gloo), too, where that cannot.

    The modules stay what they are, and so do the names in ``state_dict``; they are marked in place. Nothing changes in
    evaluation, or while ``torch.distributed`` is not initialised. A norm that runs as a module of its own (hooks,
    ``fused=False``) cannot share statistics this way, and says so in training.

    Args:
        process_group: None: all processes.

    Returns:
        ``model``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, (*_NORMS, Norm)):
            module.process_group = "world" if process_group is None else process_group
    return model
