"""Fusion for evaluation: folds batch norm into the convolutions' weights; neuron and connection are one op."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sewsnn.layers.modules import BNNeuron
from sewsnn.layers.plan import is_altered

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for evaluation in which the convolutions' weights contain the batch norm that follows them.

        W' = W weight / sqrt(running_var + eps),  b' = (b - running_mean) weight / sqrt(running_var + eps) + bias

    The function folds

    - all batch norms of a network of :mod:`sewsnn.models`,
    - in a module of yours, each pair ``(conv, bn)`` that its method ``conv_bn_pairs()`` yields,
    - in an ``nn.Sequential``, each batch norm directly after a convolution.

    All other norms stay unchanged. Norms and convolutions also stay unchanged if they have hooks, are in more than one
    place of the model, or are of a class that is not torch's own, because folded weights could not replace them.

    The outputs equal those of the model except for rounding: a neuron whose membrane potential is within rounding of
    the threshold may fire in one and not in the other.

    Args:
        model: the network. It stays unchanged.

    Returns:
        The copy, in evaluation mode.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a norm to be folded has no running statistics.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> deployed = fuse(net)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    fused = copy.deepcopy(model).eval()
    folded = {}
    for conv, bn in _pairs(fused):
        if bn.running_mean is None:
            raise ValueError(f"cannot fold {bn}: it has no running statistics (track_running_stats=False)")
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        folded[bn] = bn.without_norm() if isinstance(bn, BNNeuron) else nn.Identity()
    for module in fused.modules():
        for name, child in list(module.named_children()):
            if child in folded:
                module._modules[name] = folded[child]
    return fused


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yields each convolution with the norm that follows it, once, if the norm can be folded."""
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    seen = set()
    for module in list(model.modules()):
        pairs = getattr(module, "conv_bn_pairs", None)
        if "forward" in vars(module):
            continue
        if pairs is not None:
            found = list(pairs()) if _knows_its_pairs(type(module)) else []
        elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            # Iteration repeats a module that occurs twice; children() would not repeat it.
            found = [(conv, bn) for conv, bn in itertools.pairwise(module) if type(bn) in _NORMS]
        else:
            continue
        for conv, bn in found:
            if bn not in seen and places[conv] == places[bn] == 1 and _can_fold(conv, bn):
                seen.add(bn)
                yield conv, bn


def _knows_its_pairs(kind: type) -> bool:
    """Returns whether ``conv_bn_pairs`` describes the forward that runs.

    A class derived from the one that defines ``conv_bn_pairs`` may override a method and insert something between the
    two.
    """
    derived = list(itertools.takewhile(lambda c: "conv_bn_pairs" not in vars(c), kind.__mro__))
    base = kind.__mro__[len(derived)] if len(derived) < len(kind.__mro__) else object
    changed = {name for c in derived for name in vars(c) if callable(getattr(base, name, None))}
    return "__call__" not in changed and all(name.startswith("__") or name == "extra_repr" for name in changed)


def _can_fold(conv: nn.Module, bn: nn.Module) -> bool:
    """Returns whether the norm can be folded. A class of the user or a hook may compute something else."""
    ours = isinstance(bn, BNNeuron) and type(bn).forward is BNNeuron.forward
    known = type(conv) in _CONVS and (type(bn) in _NORMS or ours)
    return known and not is_altered(conv) and not is_altered(bn)
