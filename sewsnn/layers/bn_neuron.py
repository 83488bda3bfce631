"""Batch norm + neuron + connection in one op: :func:`bn_neuron`, and :class:`BNNeuron` as a layer."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase

from sewsnn import checks
from sewsnn.neuron import BaseNode, IFNode
from sewsnn.ops import bn as native
from sewsnn.ops.load import resolve_backend
from sewsnn.ops.reference import CONNECT, state_dtype
from sewsnn.surrogate import ATan

_FUSABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ATAN = ATan(2.0)


def bn_neuron(
    z_seq: Tensor,
    bn: nn.Module | None,
    neuron: nn.Module | None,
    shortcut: Tensor | None = None,
    *,
    connect_f: str | None = None,
    connect_before: bool = False,
    T: int | None = None,
    two: bool = False,
    pack_spikes: bool = False,
    fused: bool = True,
) -> native.Output:
    """``out = g(SN(BN(z)), S)``: batch norm, the neuron over all T, and the connection, in one op where that can be.

        y = (z - mean) weight / sqrt(var + eps) + bias      mean and var over T, N and space
        A = SN(y)
        out = A (None), A + S (ADD), A S (AND), S (1 - A) (IAND)
        out = SN(y + S)                                     ADD with ``connect_before``: the order of Spiking ResNet

    Backward recomputes the neuron: kept are z and the statistics (also S, where its values matter; for T > 16 every
    16th potential). Statistics, potentials and sums are in float32 (float64 for float64), whatever the dtype of z_seq
    is, and nothing is rounded between the convolution's output and out. Sums are taken in a fixed order: the same bits
    every time.

    The modules themselves run, one after the other, where the op cannot stand for them: hooks on them, a norm or a
    neuron of another class, a kept state, single-step mode, ``store_v_seq``, a surrogate of your own, ``torch.func``.

    Args:
        z_seq: ``[T, N, C, ...]``, the output of a convolution, in any dense order (channels_last is the fastest).
        bn: ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` or :class:`BNNeuron`; None or ``nn.Identity``: y = z.
        neuron: a node of :mod:`sewsnn.neuron`; None: A = y.
        shortcut: S, of the shape and dtype of z_seq.
        connect_f: None, ``"ADD"``, ``"AND"`` or ``"IAND"`` (main paper, Table 1).
        T: z_seq is a still image ``[N, C, ...]``: normalised once, shown T times.
        two: return ``skip``, too: the numbers of out again, for a second reader (the next block's shortcut). The two
            gradients are then added inside backward, which saves a pass over memory.
        pack_spikes: return ``bits``, too: spike i (in the order of out's memory) of a time-step is bit i % 8 of byte
            i / 8. They must be spikes, 8 in a byte: no connection after the neuron, N C H W a multiple of 8. None where
            that is not so, or the op cannot be used.
        fused: False: run the modules.

    Returns:
        ``(out, skip, v, bits)``, None for what was not asked for. The neuron's ``v`` is set as it would set it.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: z_seq has values that are not finite (in training on the CPU; on a GPU one would have to wait for
            the answer). On either device the running statistics stay as they were.

    Source: main paper, section 3.2 and Table 1; supplement, A.1.
    """
    _check(z_seq, bn, neuron, shortcut, connect_f, connect_before, T)
    norm = None if isinstance(bn, nn.Identity) else bn
    if not (fused and _can_fuse(z_seq, norm, neuron)):
        return _by_modules(z_seq, norm, neuron, shortcut, connect_f, connect_before, T, two)
    state = state_dtype(z_seq.dtype)
    statistics = weight = bias = group = None
    training, count = False, 1.0
    if norm is not None:
        weight, bias = (None if p is None else p.to(state).contiguous() for p in (norm.weight, norm.bias))
        training = norm.training or norm.running_mean is None
        held = norm.running_mean if weight is None else weight
        if held is not None and held.device != z_seq.device:
            raise ValueError(f"bn must be on the device of z_seq, {z_seq.device}, got {held.device}")
        if training:
            group = _group_of(norm)
            _check_enough(z_seq, T, group)
            statistics, count = native.moments(z_seq, T or 0, group)
        else:
            statistics = torch.stack([norm.running_mean, norm.running_var]).to(state)
    settings, leak = _neuron_settings(neuron, state)
    connect = native.ADD_BEFORE if connect_before else native.CONNECTIONS[connect_f]
    store_v = isinstance(neuron, BaseNode) and neuron.store_v and not torch.compiler.is_exporting()
    binary = neuron is not None and connect in (native.NONE, native.ADD_BEFORE)
    step_numel = z_seq.numel() if T else z_seq.numel() // len(z_seq)
    output = native.bn_neuron(
        z_seq,
        shortcut,
        statistics,
        weight,
        bias,
        leak,
        native.Options(norm.eps if norm is not None else 0.0, connect, T or 0, *settings),
        training=training,
        count=count,
        group=group,
        store_v=store_v,
        pack=pack_spikes and binary and step_numel % 8 == 0,
        two=two,
    )
    if training and norm.training and norm.track_running_stats and norm.running_mean is not None:
        _update_running(norm, statistics, count)
    if store_v:
        neuron.v = output.v
        neuron.v_seq = None
    return output


class BNNeuron(_NormBase):
    """:func:`bn_neuron` as a layer: ``m(z_seq, shortcut=None) -> [T, N, C, H, W]``.

    Parameters and buffers are those of ``nn.BatchNorm2d``, by name and meaning, and the neuron's under ``neuron``.

    Args:
        num_features: C.
        neuron: a node of :mod:`sewsnn.neuron` (as it is, not a copy); None: a new :class:`IFNode`. ``False``: none.
        connect_f: None, ``"ADD"``, ``"AND"`` or ``"IAND"``; the shortcut is the second argument of a call.
        eps, momentum, affine, track_running_stats: as in ``nn.BatchNorm2d`` (momentum None: cumulative average).
        connect_before: add the shortcut before the neuron (ADD), as Spiking ResNet does.
        process_group: share batch statistics with these processes (``"world"``: all), as ``nn.SyncBatchNorm`` does.
    """

    def __init__(
        self,
        num_features: int,
        neuron: nn.Module | bool | None = None,
        connect_f: str | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        connect_before: bool = False,
        process_group=None,
        device=None,
        dtype=None,
    ):
        if isinstance(num_features, bool) or not isinstance(num_features, int):
            raise TypeError(f"num_features must be an int, got {type(num_features).__name__}")
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if neuron is not None and neuron is not False and not isinstance(neuron, nn.Module):
            raise TypeError(f"neuron must be a node of sewsnn.neuron, None or False, got {type(neuron).__name__}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        _check_connection(connect_f, connect_before)
        self.neuron = IFNode() if neuron is None else neuron or None
        self.connect_f = connect_f
        self.connect_before = connect_before
        self.process_group = process_group

    def forward(self, z_seq: Tensor, shortcut: Tensor | None = None, T: int | None = None) -> Tensor:
        """``[T, N, C, H, W]``. With ``T`` z_seq is a still image ``[N, C, H, W]``, shown T times."""
        connection = {"connect_f": self.connect_f, "connect_before": self.connect_before}
        return bn_neuron(z_seq, self, self.neuron, shortcut, T=T, **connection).out

    def without_norm(self) -> "NeuronConnection":
        """What is left of it when the norm is in a convolution's weights."""
        return NeuronConnection(self.neuron, self.connect_f, self.connect_before)

    def normalise(self, z: Tensor) -> Tensor:
        """Batch norm alone, of ``[N, C, ...]``, by torch."""
        factor = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if factor is None else factor
        training = self.training or self.running_mean is None
        keep = not self.training or self.track_running_stats
        running = (self.running_mean, self.running_var) if keep else (None, None)
        return nn.functional.batch_norm(z, *running, self.weight, self.bias, training, factor or 0.0, self.eps)

    def extra_repr(self):
        before = ", connect_before=True" if self.connect_before else ""
        return f"{super().extra_repr()}, connect_f={self.connect_f!r}{before}"


class NeuronConnection(nn.Module):
    """The neuron and the connection in one op: :class:`BNNeuron` without the norm."""

    def __init__(self, neuron: nn.Module | None, connect_f: str | None = None, connect_before: bool = False):
        super().__init__()
        _check_connection(connect_f, connect_before)
        self.neuron = neuron
        self.connect_f = connect_f
        self.connect_before = connect_before

    def forward(self, z_seq: Tensor, shortcut: Tensor | None = None, T: int | None = None) -> Tensor:
        """``[T, N, ...]``, as :meth:`BNNeuron.forward`."""
        connection = {"connect_f": self.connect_f, "connect_before": self.connect_before}
        return bn_neuron(z_seq, None, self.neuron, shortcut, T=T, **connection).out


# ---- how the op is called


def _group_of(norm: nn.Module):
    """The process group to share statistics with; None: this process alone."""
    group = getattr(norm, "process_group", None)
    wanted = isinstance(norm, nn.SyncBatchNorm) or group is not None
    if not (wanted and norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if group is None or group == "world" else group
    return group if dist.get_world_size(group) > 1 else None


def _neuron_settings(neuron: nn.Module | None, state: torch.dtype) -> tuple[tuple, Tensor | None]:
    """The ops' eight numbers about a neuron, and the leak of PLIF."""
    if neuron is None:
        return (native.NO_NEURON, 2.0, True, 1.0, 0.0, _ATAN.kind, _ATAN.parameter, True), None
    charge = neuron.charge_arguments()
    w = charge.get("w")
    settings = (
        neuron.kind,
        float(charge.get("tau", 2.0)),
        charge.get("decay_input", True),
        float(neuron.v_threshold),
        None if neuron.v_reset is None else float(neuron.v_reset),
        neuron.surrogate_function.kind,
        neuron.surrogate_function.parameter,
        neuron.detach_reset,
    )
    return settings, None if w is None else w.to(state).reshape(()).sigmoid()


def _update_running(norm: nn.Module, statistics: Tensor, count: Tensor | float) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # cumulative average; the number stays where it is
        momentum = 1 / norm.num_batches_tracked.to(statistics.dtype)
    native.update_running(statistics, count, momentum, norm.running_mean, norm.running_var)


# ---- when it cannot be


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _can_fuse(z_seq: Tensor, norm: nn.Module | None, neuron: nn.Module | None) -> bool:
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if norm is not None and type(norm) is not BNNeuron and (type(norm) not in _FUSABLE or _has_hooks(norm)):
        return False
    if neuron is None:
        return resolve_backend("auto", z_seq.device.type, _ATAN) == "native"
    if not isinstance(neuron, BaseNode) or type(neuron).forward is not BaseNode.forward or _has_hooks(neuron):
        return False
    if neuron.step_mode != "m" or neuron.keeps_state or neuron.store_v_seq:
        return False
    return resolve_backend(neuron.backend, z_seq.device.type, neuron.surrogate_function) == "native"


def _by_modules(z_seq, norm, neuron, shortcut, connect_f, connect_before, T, two) -> native.Output:
    if norm is not None and not isinstance(norm, nn.SyncBatchNorm) and _group_of(norm) is not None:
        raise RuntimeError(
            "this batch norm shares its statistics with other processes, which only the fused op can do: it must not "
            "have hooks, and its neuron must be one the compiled kernels know"
        )
    normalise = norm.normalise if isinstance(norm, BNNeuron) else norm
    if norm is None:
        y = z_seq if T is None else z_seq.unsqueeze(0).expand(T, *z_seq.shape)
    elif T is None:
        y = normalise(z_seq.flatten(0, 1)).unflatten(0, z_seq.shape[:2])
    else:
        y = normalise(z_seq)
        y = y.unsqueeze(0).expand(T, *y.shape)
    if connect_before:
        y = y + shortcut
    a = y if neuron is None else neuron(y)
    out = a if connect_f is None or connect_before else CONNECT[connect_f](a, shortcut)
    return native.Output(out, out if two else None, getattr(neuron, "v", None), None)


# ---- what must be as it is


def _check_connection(connect_f, connect_before) -> None:
    if connect_f is not None and connect_f not in CONNECT:
        raise ValueError(f"connect_f must be None or one of {', '.join(map(repr, CONNECT))}, got {connect_f!r}")
    if connect_before and connect_f != "ADD":
        raise ValueError(f"connect_before adds the shortcut: connect_f must be 'ADD', got {connect_f!r}")


def _check(z_seq, bn, neuron, shortcut, connect_f, connect_before, T) -> None:
    _check_connection(connect_f, connect_before)
    checks.check_floating("z_seq", z_seq)
    for name, module in (("bn", bn), ("neuron", neuron)):
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a module or None, got {module!r}")
    if T is not None and (isinstance(T, bool) or not isinstance(T, int)):
        raise TypeError(f"T must be an int or None, got {type(T).__name__}")
    if T is not None and T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    dims = "[T, N, C, ...]" if T is None else "a still image [N, C, ...]"
    if z_seq.dim() < (3 if T is None else 2):
        raise ValueError(f"z_seq must be {dims}, got shape {list(z_seq.shape)}")
    if T is None and z_seq.shape[0] == 0:
        raise ValueError(f"z_seq must have at least one time-step, got shape {list(z_seq.shape)}")
    features = getattr(bn, "num_features", None)
    channels = z_seq.shape[2 if T is None else 1]
    if features and channels != features:  # 0: a lazy norm, which learns it from z_seq
        raise ValueError(f"z_seq must be {dims} with {features} channels, got shape {list(z_seq.shape)}")
    if connect_f is None:
        if shortcut is not None:
            raise ValueError("shortcut is given, but connect_f is None: there is nothing to connect it with")
        return
    if not isinstance(shortcut, Tensor):
        raise TypeError(f"shortcut must be a tensor (connect_f is {connect_f!r}), got {type(shortcut).__name__}")
    expected = list(z_seq.shape) if T is None else [T, *z_seq.shape]
    if list(shortcut.shape) != expected:
        raise ValueError(f"shortcut must have the shape of out, {expected}, got {list(shortcut.shape)}")
    if shortcut.dtype != z_seq.dtype:
        raise TypeError(f"shortcut must have the dtype of z_seq, {z_seq.dtype}, got {shortcut.dtype}")
    if shortcut.device != z_seq.device:
        raise ValueError(f"shortcut must be on the device of z_seq, {z_seq.device}, got {shortcut.device}")


def _check_enough(z_seq: Tensor, T: int | None, group) -> None:
    channels = z_seq.shape[2 if T is None else 1]
    if group is None and z_seq.numel() <= channels:
        raise ValueError(f"z_seq must have more than one value per channel in training, got shape {list(z_seq.shape)}")
