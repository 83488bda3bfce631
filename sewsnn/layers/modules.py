"""Batch norm + neuron + connection as layers."""

from torch import Tensor, nn

from sewsnn.layers.connection import Connection, connection_of
from sewsnn.layers.fused import norm_neuron_connection
from sewsnn.layers.norm import Norm
from sewsnn.layers.pooling import check_pool
from sewsnn.neuron import IFNode


class _Connected:
    """Lets a layer keep ``connect_f`` and ``connect_before`` as one checked connection."""

    _connection: Connection

    def __setstate__(self, state):
        super().__setstate__({"pool_before": False} | state)
        if "pool" not in self.__dict__ and "pool" not in self._modules:  # pickled before there was pooling
            self.pool = None

    @property
    def connect_f(self) -> str | None:
        """The connection with the shortcut: None, ``"ADD"``, ``"AND"`` or ``"IAND"``. An assignment is checked."""
        return self._connection.f

    @connect_f.setter
    def connect_f(self, connect_f: str | None) -> None:
        self._connection = connection_of(connect_f, self.connect_before, self.return_sum)

    @property
    def connect_before(self) -> bool:
        """Whether the shortcut is added before the neuron. An assignment is checked."""
        return self._connection.before

    @connect_before.setter
    def connect_before(self, connect_before: bool) -> None:
        self._connection = connection_of(self.connect_f, connect_before, self.return_sum)

    @property
    def return_sum(self) -> bool:
        """Whether a call also returns the sum. An assignment is checked."""
        return self._connection.returns_sum

    @return_sum.setter
    def return_sum(self, return_sum: bool) -> None:
        self._connection = connection_of(self.connect_f, self.connect_before, return_sum)


class BNNeuron(_Connected, Norm):
    """Batch norm, a spiking neuron and the connection with a shortcut, as one layer and one op.

        A = SN(BN(z))
        out = A (None), A + S (ADD), A S (AND), S (1 - A) (IAND)
        out = SN(BN(z) + S)                                     ADD with ``connect_before``
        u = BN(z) + S, out = SN(u)                              the same with ``return_sum``: the membrane shortcut

    Parameters and buffers have the names and meanings of ``nn.BatchNorm2d``; those of the neuron are under ``neuron``.

    Args:
        num_features: number of channels C.
        neuron: a node of :mod:`sewsnn.neuron`, used as it is, not copied. Default None: a new ``IFNode()``. False: no
            neuron.
        connect_f: None (default), ``"ADD"``, ``"AND"`` or ``"IAND"``. The shortcut is the second argument of a call.
        eps: added to the variance. Default 1e-5.
        momentum: weight of the new value in the running statistics. Default 0.1. None: cumulative average.
        affine: learn a weight and a bias per channel. Default True.
        track_running_stats: keep running statistics for evaluation. Default True.
        connect_before: add the shortcut before the neuron, as Spiking ResNet does; needs ``connect_f="ADD"``. Default
            False.
        return_sum: return ``(out, u)``; u is the shortcut of the next block (MS-ResNet, Spike-driven Transformer). It
            is rounded to the dtype of z, and the neuron runs on the rounded u. Backward adds the two gradients of u in
            the same op. It needs ``connect_f="ADD"`` and ``connect_before=True``. Default False.
        pool: ``nn.MaxPool2d`` that pools the result, or, with ``pool_before``, BN(z) before anything else happens to
            it; it is kept as the submodule ``pool``, which has no parameters. Default None.
        pool_before: pool before the neuron (:func:`bn_neuron` says how). Default False.
        process_group: share the batch statistics with the processes of this group, as ``nn.SyncBatchNorm`` does;
            ``"world"``: all processes. Default None: this process only.
        device: device of the parameters. Default None: torch's default.
        dtype: dtype of the parameters. Default None: torch's default.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> layer = BNNeuron(8, neuron=sewsnn.neuron.LIFNode(tau=2.0), connect_f="ADD")
        >>> out = layer(torch.randn(4, 2, 8, 16, 16), torch.ones(4, 2, 8, 16, 16))  # [T, N, C, H, W]

    Source: main paper, section 3.2 and Table 1.
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
        return_sum: bool = False,
        pool: nn.MaxPool2d | None = None,
        pool_before: bool = False,
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
        self._connection = connection_of(connect_f, connect_before, return_sum)
        self.register_module("neuron", IFNode() if neuron is None else neuron or None)
        check_pool(pool, pool_before)
        self.pool, self.pool_before = pool, pool_before
        self.process_group = process_group

    def forward(
        self, z_seq: Tensor, shortcut: Tensor | None = None, T: int | None = None, *, merged: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs batch norm, the neuron and the connection.

        Args:
            z_seq: output of a convolution, ``[T, N, C, H, W]``, or a still image ``[N, C, H, W]`` with ``T``.
            shortcut: S, ``[T, N, C, H, W]`` in the dtype of z_seq. Required with ``connect_f``. Default None.
            T: number of time-steps for which a still image is shown; with ``merged``, those in the first dimension.
                Default None: z_seq has a time axis.
            merged: z_seq and shortcut are ``[T * N, C, H, W]``, and so is the result; needs ``T``. Default False.

        Returns:
            ``[T, N, C, H, W]`` in the dtype of z_seq; with ``return_sum`` two of them, out and u.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
            RuntimeError: z_seq has values that are not finite, in training on the CPU.
        """
        modules = self.__dict__["_modules"]  # without the cost of nn.Module.__getattr__
        options = {"pool": modules["pool"], "pool_before": self.pool_before} if "pool" in modules else {}
        neuron, connection = modules["neuron"], self._connection
        out, total, *_ = norm_neuron_connection(
            z_seq, self, neuron, shortcut, connection, T=T, merged=merged, **options
        )
        return out if total is None else (out, total)

    def without_norm(self) -> "NeuronConnection":
        """The layer without batch norm, for a network whose convolutions contain the norm in their weights.

        Returns:
            A :class:`NeuronConnection` with the same neuron (not a copy) and connection.
        """
        options = {"pool": self.pool, "pool_before": self.pool_before}
        return NeuronConnection(self.neuron, self.connect_f, self.connect_before, self.return_sum, **options)

    def extra_repr(self):
        before = ", connect_before=True" if self.connect_before else ""
        before += ", return_sum=True" if self.return_sum else ""
        before += ", pool_before=True" if self.pool_before else ""
        return f"{super().extra_repr()}, connect_f={self.connect_f!r}{before}"


class NeuronConnection(_Connected, nn.Module):
    """A spiking neuron and the connection with a shortcut, as one layer and one op: :class:`BNNeuron` without the norm.

        A = SN(z)
        out = A (None), A + S (ADD), A S (AND), S (1 - A) (IAND)
        out = SN(z + S)                                         ADD with ``connect_before``
        u = z + S, out = SN(u)                                  the same with ``return_sum``

    Args:
        neuron: a node of :mod:`sewsnn.neuron`; None: no neuron, A = z.
        connect_f: None (default), ``"ADD"``, ``"AND"`` or ``"IAND"``. The shortcut is the second argument of a call.
        connect_before: add the shortcut before the neuron; needs ``connect_f="ADD"``. Default False.
        return_sum: return ``(out, u)``; needs ``connect_f="ADD"`` and ``connect_before=True``. Default False.
        pool: ``nn.MaxPool2d`` that pools the result, or, with ``pool_before``, z. Default None.
        pool_before: pool before the neuron. Default False.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source: main paper, section 3.2 and Table 1.
    """

    def __init__(
        self,
        neuron: nn.Module | None,
        connect_f: str | None = None,
        connect_before: bool = False,
        return_sum: bool = False,
        *,
        pool: nn.MaxPool2d | None = None,
        pool_before: bool = False,
    ):
        super().__init__()
        self._connection = connection_of(connect_f, connect_before, return_sum)
        self.neuron = neuron
        check_pool(pool, pool_before)
        self.pool, self.pool_before = pool, pool_before

    def forward(
        self, z_seq: Tensor, shortcut: Tensor | None = None, T: int | None = None, *, merged: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the neuron and the connection.

        Args:
            z_seq: output of a convolution, ``[T, N, C, ...]``, or a still image ``[N, C, ...]`` with ``T``.
            shortcut: S, in the shape of the output and the dtype of z_seq. Required with ``connect_f``. Default None.
            T: number of time-steps for which a still image is shown; with ``merged``, those in the first dimension.
                Default None: z_seq has a time axis.
            merged: z_seq and shortcut are ``[T * N, C, ...]``, and so is the result; needs ``T``. Default False.

        Returns:
            ``[T, N, C, ...]`` in the dtype of z_seq; with ``return_sum`` two of them, out and u.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
        """
        options = {"T": T, "merged": merged, "pool": self.pool, "pool_before": self.pool_before}
        out, total, *_ = norm_neuron_connection(z_seq, None, self.neuron, shortcut, self._connection, **options)
        return out if total is None else (out, total)
