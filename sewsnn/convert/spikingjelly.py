"""Converts SpikingJelly's models with :func:`from_spikingjelly`. Only a call of this function imports SpikingJelly."""

import contextlib
import sys
from collections import Counter
from importlib import import_module

from torch import nn

from sewsnn.convert.report import Left, Replaced, Report
from sewsnn.errors import UserError


def from_spikingjelly(model: nn.Module, *, fuse: bool = True) -> Report:
    """Lets sewsnn compute the neurons of a SpikingJelly model. It works in place.

    It supports ``spikingjelly.activation_based`` of 0.0.0.0.14 and 2.0, and ``spikingjelly.clock_driven`` of 0.0.0.0.4
    to 0.0.0.0.14. It converts ``IFNode``, ``LIFNode``, ``ParametricLIFNode``, ``QIFNode``, their ``MultiStep...``
    classes of ``clock_driven``, 2.0's ``CUBALIFNode`` and ``ILIFNode``, and subclasses that change only ``__init__`` or
    what is printed. Every module stays the same object, with its parameters, settings, state, hooks and names; only the
    classes of neurons, batch norms, max poolings and some blocks change, to classes that derive from the old ones
    (docs/spikingjelly.md). Therefore ``state_dict``, optimizers, ``functional.reset_net``, ``set_step_mode``,
    ``detach_net`` and monitors still work.

    Args:
        model: a module, or a wrapper around it (``DistributedDataParallel``).
        fuse: run batch norm and neuron (and the shortcut) in one op, where the neuron receives the batch norm's
            result, directly or after views, permutations, max pooling and a sum, and starts from rest. Every
            ``nn.MaxPool2d`` pools by sewsnn's op, with the same values and gradients. Default True. Batch norm is
            then rounded differently than in torch, and the state has no graph. Pass False to train through the state
            over several calls; False also undoes the fusion of an earlier conversion.

    Returns:
        A :class:`Report`: the neurons that were replaced, the neurons that were not, and the reasons. After a batch,
        its ``refresh()`` says what really ran.

    Raises:
        TypeError: ``model`` is not a module.
        sewsnn.errors.UserError: SpikingJelly cannot be imported.

    Example:
        >>> report = from_spikingjelly(net)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    _import_spikingjelly()
    from sewsnn.convert import classes, fusion, poolings
    from sewsnn.convert.bridge import Bridge

    report = Report(model)
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Bridge):
            report.converted_before.append(name)
        elif reason := classes.why_not(module):
            report.left.append(Left(name, type(module).__name__, reason))
        elif classes.converts(module):
            module.__class__ = classes.swapped(type(module))
            if places[module] > 1:
                module.may_fuse = False
            found[module] = name
    fused = fusion.set_fusion(model, fuse)
    report.poolings += [name for name, module in model.named_modules() if isinstance(module, poolings.Pooling)]
    for module, name in found.items():
        settings = f"{module.extra_repr()}, {module.surrogate_function}"
        why = module.why_alone_now() if module in fused or not fuse else fusion.why_alone(model, name, module)
        reason = why if fuse else "fuse=False"
        report.replaced.append(Replaced(name, type(module).__name__, settings, fused.get(module, ""), reason))
    return report


def _import_spikingjelly() -> None:
    """Imports SpikingJelly, if the script has not.

    Raises:
        sewsnn.errors.UserError: it cannot be imported.
    """
    parts = ("spikingjelly.activation_based.neuron", "spikingjelly.clock_driven.neuron")
    if any(part in sys.modules for part in parts):
        return
    try:
        import_module(parts[0])
    except ImportError as error:
        with contextlib.suppress(ImportError):  # up to 0.0.0.0.12 there is only clock_driven
            import_module(parts[1])
            return
        message = f"from_spikingjelly needs SpikingJelly, 0.0.0.0.4 or newer ({error}): pip install spikingjelly"
        raise UserError(message) from error
