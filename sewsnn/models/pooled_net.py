"""Networks of equal blocks with max pooling between the stages.

7B-Net and Wide-7B-Net are for event data (main paper, sections 4.2 and 4.3); the light network is for CIFAR-10
(supplement, A.5 and Table S3). The stages reduce 128 x 128 or 32 x 32 pixels to one.

The spiking, plain and SEW forms differ only in their blocks. All blocks of a stage have equal widths and need no
convolution in their shortcut, so all three forms have the same number of parameters.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sewsnn.layers import bn_neuron, over_time
from sewsnn.layers.plan import must_be_called
from sewsnn.models.blocks import BasicBlock, Style
from sewsnn.models.network import (
    Network,
    check_kernel,
    check_stages,
    flat_mean,
    make_style,
    one_reader,
    run_blocks,
    zero_init,
)
from sewsnn.models.registry import register_model
from sewsnn.neuron import ParametricLIFNode


def plif() -> ParametricLIFNode:
    """The neuron of the event networks: PLIF with tau = 2 time-steps at the start of training."""
    return ParametricLIFNode(init_tau=2.0, store_v=False)


class Stage(nn.Module):
    """Blocks of one width, then max pooling 2x2; if the width changes, convolution, batch norm and a neuron come first.

    Args:
        in_channels: channels of the input.
        width: channels of the blocks and of the output.
        depth: number of blocks.
        kernel: size of the first convolution, odd.
        style: the settings that all blocks of a network share (:class:`sewsnn.models.blocks.Style`).
    """

    def __init__(self, in_channels: int, width: int, depth: int, kernel: int, style: Style):
        super().__init__()
        self.fused = style.fused
        self.conv = None
        if in_channels != width:
            self.conv = nn.Conv2d(in_channels, width, kernel, padding=kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(width)
            self.sn = style.neuron()
        self.blocks = nn.Sequential(*(BasicBlock(width, width, 1, style) for _ in range(depth)))
        self.pool = nn.MaxPool2d(2)

    def conv_bn_pairs(self):
        """Yields the convolution that changes the width, with its norm; the blocks yield their own pairs."""
        if self.conv is not None:
            yield self.conv, self.bn

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Runs the stage.

        Args:
            x: ``[T, N, in_channels, H, W]``, or a still image ``[N, in_channels, H, W]`` with ``T``.
            T: number of time-steps for which a still image is shown. Default None: x has a time axis.

        Returns:
            ``[T, N, width, H / 2, W / 2]``, rounded down.
        """
        s = one_reader(x)
        if self.conv is not None:
            z = over_time(self.conv, x) if T is None else self.conv(x)
            s = bn_neuron(z, self.bn, self.sn, T=T, return_skip=True, fused=self.fused)
        watched = type(self.blocks) is not nn.Sequential or must_be_called(self.blocks)
        return run_blocks([self.blocks] if watched else list(self.blocks), s, self.pool).out


class PooledNet(Network):
    """A network of stages of blocks, with max pooling 2x2 at the end of each stage.

    A stage that changes the number of channels starts with convolution, batch norm and a neuron. The mean over space
    and a linear layer follow the last stage.

    Args:
        widths: channels of each stage. The first must differ from ``in_channels``.
        blocks: number of blocks of each stage.
        num_classes: number of logits.
        in_channels: channels of the input.
        stem_kernel: odd size of the convolutions that change the number of channels.
        T: number of time-steps for which a still image is shown. A sequence has its own T. Default 4.
        connect_f: ``"ADD"`` (default), ``"AND"`` or ``"IAND"`` (main paper, Table 1). Only ``residual="sew"`` uses it.
        neuron: a class of :mod:`sewsnn.neuron` or any function that makes a neuron layer, called once per layer; or one
            node, which is copied for each layer. Default None: IF with the paper's settings.
        zero_init_residual: start the last BN of each block at weight 0 (with AND also bias 1), so that the block starts
            as the identity. Plain blocks have no shortcut and stay unchanged. Default False.
        residual: ``"sew"`` (default): g(SN(F(S)), S); ``"spiking"``: SN(F(S) + S); ``"plain"``: no shortcuts.
        fused: batch norm, neuron and connection are one op (:func:`sewsnn.layers.bn_neuron`). Default True. False runs
            the modules one after the other.
        pack_spikes: convolutions keep the spikes they read as bits for backward, which takes less memory and a little
            more time. Default False.
        last_neuron: makes the last neuron of each block, in the same form as ``neuron``. Default None: ``neuron`` does.
        return_seq: ``forward`` returns the logits of every time-step, ``[T, N, num_classes]``, unless its own argument
            says otherwise. Default False.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. A call raises ValueError for images with
            fewer than ``2 ** len(widths)`` pixels per side.

    Example:
        >>> net = sewsnn.models.create_model("sew_7b_net", T=16)  # a PooledNet for DVS Gesture
        >>> logits = net(torch.rand(2, 1, 2, 128, 128))  # [T, N, C, H, W] -> [N, 11]

    Source: main paper, sections 4.2 and 4.3; supplement, A.5 and Table S3.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        stem_kernel: int,
        T: int = 4,
        connect_f: str = "ADD",
        neuron: Callable[[], nn.Module] | nn.Module | None = None,
        zero_init_residual: bool = False,
        residual: str = "sew",
        fused: bool = True,
        pack_spikes: bool = False,
        last_neuron: Callable[[], nn.Module] | nn.Module | None = None,
        return_seq: bool = False,
    ):
        super().__init__(T, in_channels, num_classes, return_seq)
        check_stages(blocks, widths)
        check_kernel(stem_kernel)
        if in_channels == widths[0]:
            raise ValueError(
                f"in_channels must differ from the first width, {widths[0]}: only a stage that changes the number of "
                "channels starts with a convolution and a neuron, which turn the image into spikes"
            )
        style = make_style(residual, connect_f, neuron, last_neuron, fused, pack_spikes)
        self.stages = len(widths)
        channels = in_channels
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            self.add_module(f"layer{i + 1}", Stage(channels, width, depth, stem_kernel, style))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        if zero_init_residual:
            zero_init(self)

    def features(self, x: Tensor) -> Tensor:
        """The features that the classifier ``fc`` reads.

        Args:
            x: a still image ``[N, C, H, W]``, shown T times, or a sequence ``[T, N, C, H, W]``.

        Returns:
            ``[T, N, F]``, pooled over space.

        Raises:
            ValueError: the images have fewer than ``2 ** len(widths)`` pixels per side.
        """
        least = 2**self.stages
        if min(x.shape[-2:]) < least:
            raise ValueError(f"x must be at least {least} x {least} pixels, got shape {list(x.shape)}")
        s_seq = self.layer1(x, self.T) if x.dim() == 4 else self.layer1(x)
        for i in range(1, self.stages):
            s_seq = getattr(self, f"layer{i + 1}")(s_seq)
        return flat_mean(self.avgpool, s_seq)


def _register(name: str, residual: str, document: str, **structure):
    def build(**kwargs) -> PooledNet:
        return PooledNet(residual=residual, **(structure | kwargs))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{document}.\n\nKeyword arguments: those of :class:`PooledNet`, except residual.\n"
    return register_model(build)


_7B = {
    "widths": (32,) * 7,
    "blocks": (1,) * 7,
    "num_classes": 11,
    "in_channels": 2,
    "stem_kernel": 1,
    "neuron": plif,
    "T": 16,
}
_WIDE = _7B | {"widths": (64,) * 4 + (128,) * 3, "num_classes": 10}
_CIFAR10 = {"widths": (32,) * 5, "blocks": (2,) * 5, "num_classes": 10, "in_channels": 3, "stem_kernel": 3, "T": 4}
_NAMES = {"sew": "SEW", "spiking": "Spiking", "plain": "Plain"}
for _residual, _title in _NAMES.items():
    _register(
        f"{_residual}_7b_net",
        _residual,
        f"7B-Net with {_title} blocks, for DVS Gesture: c32k1-BN-PLIF-{{block(c32)-MPk2s2}}*7-FC11. "
        "The paper's text has a 3x3 stem, the published networks a 1x1 (``stem_kernel``)",
        **_7B,
    )
_register(
    "sew_wide_7b_net",
    "sew",
    "Wide-7B-Net with SEW blocks, for CIFAR10-DVS: "
    "c64k1-BN-PLIF-{block(c64)-MPk2s2}*4-c128k1-BN-PLIF-{block(c128)-MPk2s2}*3-FC10",
    **_WIDE,
)
for _residual in ("sew", "spiking"):
    _register(
        f"{_residual}_cifar10_net",
        _residual,
        f"The light network of Table S3 with {_NAMES[_residual]} blocks: "
        "c32k3s1-BN-IF-{block(c32k3s1)*2-MPk2s2}*5-FC10",
        **_CIFAR10,
    )
