"""Membrane potentials and spikes of neuron layers over time: :func:`record`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.analysis.watching import evaluating
from sewsnn.errors import by_nearness, short
from sewsnn.neuron import BaseNode
from sewsnn.ops import checks
from sewsnn.ops.reference import NEURONS, state_dtype

_NEAREST = 5  # names in a message about an unknown layer


class Recording(NamedTuple):
    """What the neurons of one layer did in every time-step.

    Potentials are dimensionless, like ``v_threshold``. They are in float32 (float64 for float64 input), and all tensors
    are on the CPU if the compiled kernels ran the layer, else on the device of the model.

    Attributes:
        x_seq: input current ``[T, N, ...]``.
        h_seq: membrane potential after the charge with the input, before firing and reset, ``[T, N, ...]``.
        v_seq: membrane potential after the reset, ``[T, N, ...]``. Without a spike it equals h.
        s_seq: what the network's layer sent, ``[T, N, ...]``: spikes of 0 or 1, or the number of spikes of an
            :class:`sewsnn.neuron.ILIFNode` (with ``normalize=True`` its share of D).
        v_start: membrane potential before the first time-step.
        threshold: firing threshold of every neuron, ``[N, ...]``; the neuron fires where h >= threshold. Of an ILIFNode
            it is the potential of one spike: n = round(clamp(h / threshold, 0, D)).
    """

    x_seq: Tensor
    h_seq: Tensor
    v_seq: Tensor
    s_seq: Tensor
    v_start: float
    threshold: Tensor


def neuron_layers(model: nn.Module) -> dict[str, BaseNode]:
    """Returns the neuron layers of a model by their names, in the order of ``model.named_modules()``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseNode)}


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ValueError with the nearest names unless each name is that of a neuron layer of the model."""
    nodes = neuron_layers(model)
    for name in layers:
        if name not in nodes:
            names = by_nearness(name, nodes)
            near, more = names[:_NEAREST], len(names) - _NEAREST
            rest = f" and {more} more" if more > 0 else ""
            raise ValueError(f"unknown neuron layer {short(name)}; the nearest are {', '.join(near) or 'none'}{rest}")


@torch.no_grad()
def record(model: nn.Module, x: Tensor, layers: Iterable[str]) -> dict[str, Recording]:
    """Records input, membrane potentials and spikes of some neuron layers while the model runs once.

    The model runs in evaluation mode with its neurons at rest. The input and the spikes of a layer are those of the
    network. The potentials are computed from this input by :mod:`sewsnn.ops.reference`, for every kind of neuron; the
    spikes that follow from them are compared with those that the network sent. The model is restored afterwards: the
    mode of every module, the states of the neurons, the hooks.

    In each of these layers, batch norm and neuron run as separate modules instead of one fused op, because the op does
    not write the input of the neuron. The two ways may differ in the last bit of that input.

    Args:
        model: a network with nodes of :mod:`sewsnn.neuron`.
        x: the input with which the model is called, such as ``[N, C, H, W]`` or ``[T, N, C, H, W]``.
        layers: names of neuron layers in ``model.named_modules()``.

    Returns:
        ``{name: recording}`` in the order of ``layers``. In single-step mode the time-steps are the calls of the node.

    Raises:
        TypeError: ``layers`` is one string.
        ValueError: there is no neuron layer of that name; the message lists the nearest names. Or the model did not
            call the layer, or called a layer that starts at rest in each call several times.
        RuntimeError: the layer sent other spikes than its settings say, for example because its class overrides
            ``forward``; the message names the layer.

    Source: the equations of :mod:`sewsnn.ops.reference`; for IF and LIF the supplement, A.1.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> found = record(net, torch.rand(2, 3, 32, 32), ["layer1.sn"])
        >>> found["layer1.sn"].h_seq.shape[:2]
        torch.Size([4, 2])
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got the string {short(layers)}")
    names = list(dict.fromkeys(layers))
    check_layers(model, names)
    nodes = neuron_layers(model)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def listener(name):
        def hook(node, arguments, named, s_seq):
            calls[name].append(
                tuple(_sequence(node, t, *arguments[1:], **named).clone() for t in (arguments[0], s_seq))
            )

        return hook

    with evaluating(model) as hooks:
        hooks += [nodes[name].register_forward_hook(listener(name), with_kwargs=True) for name in names]
        model(x)
        return {name: _recording(name, nodes[name], calls[name]) for name in names}


def _sequence(node: BaseNode, t: Tensor, T: int | None = None) -> Tensor:
    """The input or the output of a call as ``[T, N, ...]``."""
    if node.step_mode == "s":
        return t.unsqueeze(0)
    return t if T is None else checks.split("x", t, T)


def _recording(name: str, node: BaseNode, calls: list[tuple[Tensor, Tensor]]) -> Recording:
    if not calls:
        raise ValueError(f"the model did not call the neuron layer {name}")
    if len(calls) > 1 and not node.keeps_state:
        raise ValueError(
            f"the model called the neuron layer {name} {len(calls)} times, and it starts at rest in each call: there "
            "is no sequence to record"
        )
    x_seq, s_seq = (torch.cat(parts) for parts in zip(*calls, strict=True))
    if node.runs_native(x_seq.device):  # the kernels give the reference's bits on the CPU
        x_seq, s_seq = x_seq.cpu(), s_seq.cpu()
    dtype, spec = state_dtype(x_seq.dtype), node.spec()
    learnt = node.learnt_parameters(dtype)
    learnt = None if learnt is None else learnt.to(x_seq.device)
    neuron = NEURONS[spec.kind](spec, learnt, x_seq.dim() - 1)
    states = tuple(torch.full_like(x_seq[0], number, dtype=dtype) for number in neuron.at_rest())
    h_seq, v_seq, found = [], [], []
    for current in x_seq:  # the loop of sewsnn.ops.reference.multistep, which does not return h
        states = neuron.charge(current.to(dtype), *states)
        s = neuron.fire(*states)
        h_seq.append(states[0])
        states = neuron.reset(s, *states)
        v_seq.append(states[0])
        found.append(neuron.output(s).to(x_seq.dtype))
    if not torch.equal(torch.stack(found), s_seq):
        wrong = (torch.stack(found) != s_seq).sum().item()
        raise RuntimeError(
            f"the neuron layer {name} ({type(node).__name__}) sent other spikes than its settings say, in {wrong} of "
            f"{s_seq.numel()} places: its potentials are unknown"
        )
    threshold = torch.as_tensor(neuron.threshold, dtype=dtype, device=x_seq.device).expand_as(x_seq[0])
    start = float(neuron.at_rest()[0])
    return Recording(x_seq, torch.stack(h_seq), torch.stack(v_seq), s_seq, start, threshold)
