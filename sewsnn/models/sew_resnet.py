"""Residual spiking networks: SEW ResNet, Spiking ResNet and the plain network.

SEW ResNet joins the spikes of branch and shortcut element-wise, g(A, S) with ADD, AND or IAND. Spiking ResNet adds the
shortcut before the neuron. The plain network has no shortcut.

Layout and names follow torchvision's ResNet v1.5 (stride on the 3x3 convolution). In SEW ResNet a spiking neuron
follows every pair of convolution and BN; in Spiking ResNet it follows all pairs except those in the shortcuts. Source:
main paper, section 3.2 and Table 1; supplement, Table S1.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sewsnn.layers import bn_neuron, bn_neuron_pool, over_time
from sewsnn.layers.plan import must_be_called
from sewsnn.models.blocks import BasicBlock, Bottleneck
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
from sewsnn.ops.bn import Output

#: the networks whose blocks and widths are arguments
FREE_SIZE = ("sew_resnet", "spiking_resnet", "plain_resnet")

_STEMS = {"imagenet": 7, "small": 3}


class SEWResNet(Network):
    """SEW ResNet and, with ``residual``, Spiking ResNet and the plain network.

        out = g(SN(F(S)), S)      ``residual="sew"``: g is ADD, AND or IAND
        out = SN(F(S) + S)        ``residual="spiking"``
        out = SN(F(S))            ``residual="plain"``

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        blocks: number of blocks of each stage. Each stage except the first halves height and width.
        widths: channels of each stage (at its end, times ``block.expansion``). Default ``(64, 128, 256, 512)``.
        num_classes: number of logits. Default 1000.
        T: number of time-steps for which a still image is shown. A sequence has its own T. Default 4.
        connect_f: ``"ADD"`` (default), ``"AND"`` or ``"IAND"`` (main paper, Table 1). Only ``residual="sew"`` uses it.
        neuron: a class of :mod:`sewsnn.neuron` or any function that makes a neuron layer, called once per layer; or one
            node, which is copied for each layer. Default None: IF with the paper's settings.
        in_channels: channels of the input. Default 3 (colour images).
        stem: ``"imagenet"`` (default): 7x7 convolution with stride 2 and max pooling; ``"small"``: 3x3 convolution with
            stride 1, for small images.
        zero_init_residual: start the last BN of each block at weight 0 (with AND also bias 1), so that the block starts
            as the identity. Plain blocks have no shortcut and stay unchanged. Default False.
        residual: ``"sew"`` (default), ``"spiking"`` or ``"plain"``, see above.
        fused: batch norm, neuron and connection are one op (:func:`sewsnn.layers.bn_neuron`). Default True. False runs
            the modules one after the other.
        pack_spikes: convolutions keep the spikes they read as bits for backward, which takes less memory and a little
            more time. Default False.
        last_neuron: makes the last neuron of each block, in the same form as ``neuron``. Default None: ``neuron`` does.
            The 0/1-gradient experiment (supplement, A.5) uses
            ``lambda: IFNode(v_threshold=0.5, surrogate_function=UnitATan())``.
        stem_kernel: odd size of the stem's convolution. Default None: the size that ``stem`` implies.
        return_seq: ``forward`` returns the logits of every time-step, ``[T, N, num_classes]``, unless its own argument
            says otherwise. Default False.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> net = SEWResNet(BasicBlock, (2, 2, 2, 2), num_classes=10)  # SEW ResNet-18
        >>> logits = net(torch.randn(1, 3, 64, 64))  # [N, C, H, W] -> [N, 10]

    Source: main paper, section 3.2 and Table 1; supplement, Table S1.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        num_classes: int = 1000,
        T: int = 4,
        connect_f: str = "ADD",
        neuron: Callable[[], nn.Module] | nn.Module | None = None,
        in_channels: int = 3,
        stem: str = "imagenet",
        zero_init_residual: bool = False,
        residual: str = "sew",
        fused: bool = True,
        pack_spikes: bool = False,
        last_neuron: Callable[[], nn.Module] | nn.Module | None = None,
        stem_kernel: int | None = None,
        return_seq: bool = False,
    ):
        super().__init__(T, in_channels, num_classes, return_seq)
        check_stages(blocks, widths)
        if stem not in _STEMS:
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        kernel = check_kernel(_STEMS[stem] if stem_kernel is None else stem_kernel)
        style = make_style(residual, connect_f, neuron, last_neuron, fused, pack_spikes)
        self.fused = fused
        channels = widths[0]
        stride = 2 if stem == "imagenet" else 1
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sn1 = style.neuron()
        self.stages = len(blocks)
        for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            layer = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(block(channels, width, stride, style))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            zero_init(self)

    def conv_bn_pairs(self):
        """Yields the stem's convolution with its norm; the blocks yield their own pairs."""
        yield self.conv1, self.bn1

    def _stem(self, x: Tensor) -> Output:
        still = x.dim() == 4  # a still image is convolved and normalised once
        z = self.conv1(x) if still else over_time(self.conv1, x)
        pooled = not isinstance(self.maxpool, nn.Identity)
        if still and _is_stem_pool(self.maxpool):
            s_seq = bn_neuron_pool(z, self.bn1, self.sn1, self.T, fused=self.fused)
            return one_reader(s_seq)
        s = bn_neuron(z, self.bn1, self.sn1, T=self.T if still else None, return_skip=not pooled, fused=self.fused)
        return one_reader(over_time(self.maxpool, s.out)) if pooled else s

    def _blocks(self) -> list[nn.Module]:
        """All blocks in order. A stage stays one module if it has hooks or somebody replaced it."""
        modules = []
        for stage in range(self.stages):
            layer = getattr(self, f"layer{stage + 1}")
            modules.extend(layer if type(layer) is nn.Sequential and not must_be_called(layer) else [layer])
        return modules

    def features(self, x: Tensor) -> Tensor:
        """The features that the classifier ``fc`` reads.

        Args:
            x: a still image ``[N, C, H, W]``, shown T times, or a sequence ``[T, N, C, H, W]``.

        Returns:
            ``[T, N, F]``, pooled over space.
        """
        return flat_mean(self.avgpool, run_blocks(self._blocks(), self._stem(x)).out)


def _is_stem_pool(pool: nn.Module) -> bool:
    """Returns whether :func:`bn_neuron_pool` can replace this pooling layer, which somebody may have exchanged."""
    if type(pool) is not nn.MaxPool2d or must_be_called(pool):
        return False
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return settings == (3, 2, 1, 1, False, False)


def _published(name: str, block, blocks, residual: str):
    def build(**kwargs) -> SEWResNet:
        return SEWResNet(block, blocks, residual=residual, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"{_NAMES[residual]} with {block.__name__} x {blocks} (supplement, Table S1).\n\n"
        "Keyword arguments: those of :class:`SEWResNet`, except block, blocks and residual.\n"
    )
    return register_model(build)


_NAMES = {"sew": "SEW ResNet", "spiking": "Spiking ResNet", "plain": "Plain network"}
_SIZES = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
for _residual in _NAMES:
    for _depth, (_block, _blocks) in _SIZES.items():
        _published(f"{_residual}_resnet{_depth}", _block, _blocks, _residual)


def _any_size(name: str, residual: str):
    def build(blocks: Sequence[int], widths: Sequence[int], bottleneck: bool = False, **kwargs) -> SEWResNet:
        return SEWResNet(Bottleneck if bottleneck else BasicBlock, blocks, widths, **({"residual": residual} | kwargs))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{_NAMES[residual]} of any size.

    Args:
        blocks: number of blocks of each stage.
        widths: channels of each stage.
        bottleneck: blocks are :class:`Bottleneck` instead of :class:`BasicBlock`. Default False.
        kwargs: the other arguments of :class:`SEWResNet`, for example ``num_classes``, ``T``, ``connect_f``,
            ``neuron``.

    Returns:
        The network, with random weights.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """
    return register_model(build)


for _name in FREE_SIZE:
    _any_size(_name, _name.removesuffix("_resnet"))
