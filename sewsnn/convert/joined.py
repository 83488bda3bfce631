"""A converted neuron and the batch norm whose deferred result it receives, in one op. Max pooling between them takes
part: it has pooled the input of the norm."""

import torch
from torch import Tensor, nn

from sewsnn.convert.deferred import Deferred
from sewsnn.layers import plan
from sewsnn.layers.norm import Normalisation
from sewsnn.ops import bn as native
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec


def joined(x: Deferred, node: nn.Module) -> Tensor | str:
    """Runs the norm (and the sum) and the neuron as one op.

    Args:
        x: the input of the neuron, ``[T, ...]``.
        node: a neuron of :mod:`sewsnn.convert.bridge`.

    Returns:
        The spikes; or why the modules must run one after the other.
    """
    call = x.source.call
    if reason := _obstacle(x, node):
        return reason
    spec = node.spec_or_reason()
    if isinstance(spec, str):
        return spec
    if not _runs_native(node, spec, x.z.device):
        return "sewsnn's compiled kernels do not run here"
    try:
        n = call.n
    except RuntimeError as error:  # of a watched call
        return str(error)
    if x.statistics is not None:  # of all that was pooled
        n = Normalisation(x.statistics, n.weight, n.bias, n.eps)
    axis, shortcut = x.axis, x.shortcut
    T = 0 if x.still is None else len(x.z)
    z = as_stacked(x.z if x.still is None else x.still.unsqueeze(0))
    if axis == 1:
        z, shortcut = z.unsqueeze(1), None if shortcut is None else shortcut.unsqueeze(1)
    elif axis > 2:
        z, shortcut = z.movedim(axis, 2), None if shortcut is None else shortcut.movedim(axis, 2)
    learnt = node.learnt_parameters(state_dtype(z.dtype))
    wanted = not x.source.watched and (shortcut is not None or (call.norm.values_wanted and x.keeps_order))
    connect = native.SUM if wanted else native.NONE if shortcut is None else native.ADD_BEFORE
    options = native.Options(n.eps, connect, T, spec)
    output = native.bn_neuron(
        z.squeeze(0) if T else z,
        shortcut,
        n.statistics,
        n.weight,
        n.bias,
        learnt,
        options,
        training=n.training,
        count=n.count,
        group=n.group,
        store_v=node.store_v,
    )
    out, total, v = output.out, output.skip, output.v
    if axis == 1:
        out, v = out.squeeze(1), None if v is None else v.squeeze(1 - z.dim()).data
        total = None if total is None else total.squeeze(1)
    elif axis > 2:  # .data: SpikingJelly detaches states in place, which torch refuses for views
        out, v = out.movedim(2, axis), None if v is None else v.movedim(2 - z.dim(), axis - z.dim()).data
        total = None if total is None else total.movedim(2, axis)
    x.source.spent = call.spent = call.record.joined = True
    if total is not None and x.keeps_order:  # whoever reads the values now gets the second result of the op
        x.source.set_value(total.reshape(x.source.shape))
    if v is not None:
        node.set_final_v(v, graph_lost=out.requires_grad)
    node.note_joined_call(out, x.value, spec, learnt)
    return out


def _obstacle(x: Deferred, node: nn.Module) -> str:
    """Why no op can run the norm and the neuron; empty if one can."""
    if x.known or x.source.touched:
        return "something else used the values of batch norm before"
    if x.source.spent or x.source.call.spent:
        return "another neuron had used the result of batch norm"
    if not x.axis:
        return "the channels of batch norm are not a dimension of the neuron's input"
    if plan.is_altered(node):
        return "it has hooks, or its forward was replaced"
    if not plan.may_skip_calls(None, None):
        return "the calls of all modules are observed (global hooks, torch.func, an export)"
    if not (torch.is_grad_enabled() == x.source.grad == x.source.call.grad):
        return "gradients were enabled for only one of batch norm, the sum and the neuron"
    if x.source.changed():
        if x.source.watched:
            return f"{x.source.changed()} was changed in place"
        x.source.check_unchanged()
    return node.why_not_joined()


_devices: set[torch.device] = set()  # those on which the compiled kernels have been found to run


def _runs_native(node: nn.Module, spec: NeuronSpec, device: torch.device) -> bool:
    if device in _devices and not spec.missing:
        return True
    runs = node.runs_native(device)
    if runs and not spec.missing:
        _devices.add(device)
    return runs


def as_stacked(x_seq: Tensor) -> Tensor:
    """x_seq in the memory order of spikes from ``torch.stack`` in SpikingJelly, so that ``view`` works as there.

    That is contiguous, or each time-step of an image or a volume in channels_last.
    """
    if x_seq.is_contiguous() or (x_seq.dim() in (5, 6) and x_seq.movedim(2, -1).is_contiguous()):
        return x_seq
    return x_seq.contiguous()
