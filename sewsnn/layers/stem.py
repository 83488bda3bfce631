"""The stem: batch norm, the neuron over all T and max pooling of a still image, in one op (:func:`bn_neuron_pool`)."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from sewsnn.layers.connection import NOT_CONNECTED
from sewsnn.layers.fused import bn_neuron, check_arguments
from sewsnn.layers.norm import normalisation, update_running
from sewsnn.layers.plan import plan
from sewsnn.ops import pool as native_pool


def bn_neuron_pool(z_seq: Tensor, bn: nn.Module | None, neuron: nn.Module, T: int, *, fused: bool = True) -> Tensor:
    """The stem of the ImageNet networks in one op: batch norm of a still image, neuron over T, max pooling.

        s[t] = SN(BN(z))[t],  out[t] = max_pool2d(s[t], kernel_size=3, stride=2, padding=1)

    The op writes only the pooled spikes. A spike is 0 or 1, so the maximum of a window is 1 if any of its neurons
    fires. Backward recomputes the spikes from z. It sends the gradient of a window to the first position that holds the
    maximum, as ``max_pool2d`` does.

    The modules run one after the other where :func:`bn_neuron` would run them, for T > 16, and where the neuron stores
    its final membrane potential (``store_v``).

    Args:
        z_seq: a still image ``[N, C, H, W]``, contiguous or channels_last, float32, float16, bfloat16 or float64.
        bn: ``nn.BatchNorm2d``, ``nn.SyncBatchNorm`` or :class:`BNNeuron`. None or ``nn.Identity``: no batch norm.
        neuron: a node of :mod:`sewsnn.neuron`.
        T: number of time-steps for which the image is shown, at least 1.
        fused: False runs the modules one after the other. Default True.

    Returns:
        Pooled spikes ``[T, N, C, H / 2, W / 2]`` in the dtype of z_seq; halves are rounded up.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the neuron asks for a backend that cannot run here.
        RuntimeError: z_seq has values that are not finite, in training on the CPU.

    Example:
        >>> bn, node = nn.BatchNorm2d(64), sewsnn.neuron.IFNode(store_v=False)
        >>> s_seq = bn_neuron_pool(torch.randn(2, 64, 112, 112), bn, node, T=4)  # [4, 2, 64, 56, 56]

    Source: supplement, Table S1 (conv1).
    """
    for name, value in (("neuron", neuron), ("T", T)):
        if value is None:
            raise TypeError(f"{name} must not be None")
    check_arguments(z_seq, bn, neuron, None, NOT_CONNECTED, T)
    if z_seq.dim() != 4:
        raise ValueError(f"z_seq must be [N, C, H, W], got shape {list(z_seq.shape)}")
    norm = None if isinstance(bn, nn.Identity) else bn
    planned = plan(z_seq, norm, neuron, T=T, pooled=True) if fused else None
    if planned is None:
        s_seq = bn_neuron(z_seq, bn, neuron, T=T, fused=fused).out
        return max_pool2d(s_seq.flatten(0, 1), 3, 2, 1).unflatten(0, s_seq.shape[:2])
    n = normalisation(norm, z_seq, T)
    out = native_pool.bn_neuron_pool(
        z_seq,
        n.statistics,
        n.weight,
        n.bias,
        planned.learnt,
        (n.eps, T, *planned.spec.arguments),
        training=n.training,
        count=n.count,
        group=n.group,
    )
    update_running(norm, n)
    return out
