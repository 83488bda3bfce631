"""Batch norm + neuron + connection as layers."""

from torch import Tensor, nn

from sewsnn.layers.bn_neuron import bn_neuron, check_connection
from sewsnn.layers.fusing import Norm
from sewsnn.neuron import IFNode


class BNNeuron(Norm):
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
        check_connection(connect_f, connect_before)
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

    def extra_repr(self):
        before = ", connect_before=True" if self.connect_before else ""
        return f"{super().extra_repr()}, connect_f={self.connect_f!r}{before}"


class NeuronConnection(nn.Module):
    """The neuron and the connection in one op: :class:`BNNeuron` without the norm."""

    def __init__(self, neuron: nn.Module | None, connect_f: str | None = None, connect_before: bool = False):
        super().__init__()
        check_connection(connect_f, connect_before)
        self.neuron = neuron
        self.connect_f = connect_f
        self.connect_before = connect_before

    def forward(self, z_seq: Tensor, shortcut: Tensor | None = None, T: int | None = None) -> Tensor:
        """``[T, N, ...]``, as :meth:`BNNeuron.forward`."""
        connection = {"connect_f": self.connect_f, "connect_before": self.connect_before}
        return bn_neuron(z_seq, None, self.neuron, shortcut, T=T, **connection).out
