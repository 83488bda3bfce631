"""SEW ResNet: residual networks whose blocks join spikes element-wise, g(A, S) with ADD, AND or IAND.

Layout and names follow torchvision's ResNet v1.5 (stride on the 3x3 convolution); every conv-BN pair is followed by a
spiking neuron. Source: main paper, section 3.2 and Table 1; supplement, Table S1.
"""

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sewsnn.models.registry import register_model
from sewsnn.neuron import BaseNode, IFNode

#: g(A, S) of Table 1: A the block's spikes, S the shortcut's
CONNECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": lambda a, s: a + s,
    "AND": lambda a, s: a * s,
    "IAND": lambda a, s: s * (1 - a),
}


def default_neuron() -> BaseNode:
    """IF with the paper's settings; the final potential is not written, since nothing here reads it."""
    return IFNode(store_v=False)


def neuron_maker(neuron: Callable[[], nn.Module] | nn.Module | None) -> Callable[[], nn.Module]:
    """A function that makes one more neuron layer each time it is called."""
    if neuron is None:
        return default_neuron
    if isinstance(neuron, nn.Module):
        return lambda: copy.deepcopy(neuron)
    if not callable(neuron):
        raise TypeError(f"neuron must be a class, a function or a node, got {type(neuron).__name__}")
    return neuron


def over_time(layers: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
    """Applies a stateless ``layers`` to ``[T, N, ...]`` as one batch of T * N."""
    return layers(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


def _conv_bn(conv: nn.Module, bn: nn.Module, x_seq: Tensor) -> Tensor:
    return over_time(lambda x: bn(conv(x)), x_seq)


def _check_connect(connect_f: str) -> str:
    if connect_f not in CONNECT:
        raise ValueError(f"connect_f must be one of {', '.join(map(repr, CONNECT))}, got {connect_f!r}")
    return connect_f


class _Block(nn.Module):
    """The shortcut, and the element-wise connection at the end."""

    def __init__(self, in_channels, channels, stride, connect_f, neuron):
        super().__init__()
        self.connect_f = _check_connect(connect_f)
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
            self.downsample_sn = neuron()
        else:
            self.downsample = None

    def connect(self, spikes: Tensor, x_seq: Tensor) -> Tensor:
        shortcut = x_seq if self.downsample is None else self.downsample_sn(over_time(self.downsample, x_seq))
        return CONNECT[self.connect_f](spikes, shortcut)

    def extra_repr(self):
        return f"connect_f={self.connect_f!r}"


class BasicBlock(_Block):
    """g(SN(BN(conv3x3(SN(BN(conv3x3(S)))))), S), ``[T, N, C, H, W]`` in and out."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, connect_f: str, neuron: Callable[[], nn.Module]):
        super().__init__(in_channels, width, stride, connect_f, neuron)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = neuron()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sn2 = neuron()

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x_seq: Tensor) -> Tensor:
        a = self.sn1(_conv_bn(self.conv1, self.bn1, x_seq))
        a = self.sn2(_conv_bn(self.conv2, self.bn2, a))
        return self.connect(a, x_seq)


class Bottleneck(_Block):
    """As :class:`BasicBlock` with conv1x1, conv3x3 (which has the stride), conv1x1 to 4 times the width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, connect_f: str, neuron: Callable[[], nn.Module]):
        channels = width * self.expansion
        super().__init__(in_channels, channels, stride, connect_f, neuron)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = neuron()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sn2 = neuron()
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.sn3 = neuron()

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x_seq: Tensor) -> Tensor:
        a = self.sn1(_conv_bn(self.conv1, self.bn1, x_seq))
        a = self.sn2(_conv_bn(self.conv2, self.bn2, a))
        a = self.sn3(_conv_bn(self.conv3, self.bn3, a))
        return self.connect(a, x_seq)


class SEWResNet(nn.Module):
    """SEW ResNet.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        blocks: number of blocks in each stage; each stage but the first halves height and width.
        widths: channels of each stage (times ``block.expansion`` at its end).
        num_classes: outputs.
        T: time-steps a static image is shown for. A sequence brings its own.
        connect_f: ``"ADD"``, ``"AND"`` or ``"IAND"`` (Table 1).
        neuron: what makes a neuron layer, a class of :mod:`sewsnn.neuron` or any function, called once for each; or one
            node, which is copied for each. None: IF with the paper's settings.
        in_channels: 3 for colour images.
        stem: ``"imagenet"``, 7x7 stride 2 and max-pooling; ``"small"``, 3x3 stride 1, for small images.
        zero_init_residual: the last BN of each block starts at weight 0 (with AND also bias 1), the block as identity.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
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
    ):
        super().__init__()
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(f"blocks and widths must have one entry per stage, got {list(blocks)} and {list(widths)}")
        if min(blocks) < 1 or min(widths) < 1:
            raise ValueError(f"blocks and widths must be positive, got {list(blocks)} and {list(widths)}")
        if not isinstance(T, int):
            raise TypeError(f"T must be an int, got {type(T).__name__}")
        if T < 1:
            raise ValueError(f"T must be at least 1, got {T}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        _check_connect(connect_f)
        neuron = neuron_maker(neuron)
        self.T = T
        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sn1 = neuron()
        self.stages = len(blocks)
        for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            layer = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(block(channels, width, stride, connect_f, neuron))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, _Block):
                    nn.init.zeros_(module.last_bn.weight)
                    if module.connect_f == "AND":
                        nn.init.ones_(module.last_bn.bias)

    def forward(self, x: Tensor, return_seq: bool = False) -> Tensor:
        """Logits ``[N, num_classes]``, the mean over time; with ``return_seq`` ``[T, N, num_classes]``.

        Args:
            x: images ``[N, C, H, W]``, convolved once and shown T times, or a sequence ``[T, N, C, H, W]``.
        """
        if x.dim() == 4:
            z = self.bn1(self.conv1(x))
            z_seq = z.unsqueeze(0).expand(self.T, *z.shape)  # stride 0 over T: nothing is copied
        elif x.dim() == 5:
            z_seq = _conv_bn(self.conv1, self.bn1, x)
        else:
            raise ValueError(f"x must be [N, C, H, W] or [T, N, C, H, W], got shape {list(x.shape)}")
        s_seq = over_time(self.maxpool, self.sn1(z_seq))
        for stage in range(self.stages):
            s_seq = getattr(self, f"layer{stage + 1}")(s_seq)
        features = over_time(lambda s: self.avgpool(s).flatten(1), s_seq)
        return self.fc(features) if return_seq else self.fc(features.mean(0))


def _published(name: str, block, blocks):
    def build(**kwargs) -> SEWResNet:
        return SEWResNet(block, blocks, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"SEW ResNet with {block.__name__} x {blocks} (supplement, Table S1); arguments of :class:`SEWResNet`."
    )
    return register_model(build)


sew_resnet18 = _published("sew_resnet18", BasicBlock, (2, 2, 2, 2))
sew_resnet34 = _published("sew_resnet34", BasicBlock, (3, 4, 6, 3))
sew_resnet50 = _published("sew_resnet50", Bottleneck, (3, 4, 6, 3))
sew_resnet101 = _published("sew_resnet101", Bottleneck, (3, 4, 23, 3))
sew_resnet152 = _published("sew_resnet152", Bottleneck, (3, 8, 36, 3))


@register_model
def sew_resnet(blocks: Sequence[int], widths: Sequence[int], bottleneck: bool = False, **kwargs) -> SEWResNet:
    """A SEW ResNet of any size: stages of ``blocks[i]`` blocks with ``widths[i]`` channels."""
    return SEWResNet(Bottleneck if bottleneck else BasicBlock, blocks, widths, **kwargs)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
