"""Code that all networks share: the time axis, the reuse of work on a still image, and the classifier."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sewsnn.layers import over_time
from sewsnn.layers.plan import must_be_called
from sewsnn.models.blocks import Block, Style
from sewsnn.neuron import BaseNode, IFNode
from sewsnn.ops.bn import Output
from sewsnn.surrogate import Surrogate


def default_neuron() -> BaseNode:
    """An IF neuron with the paper's settings; it does not store its final potential, which networks do not read."""
    return IFNode(store_v=False)


def make_style(residual: str, connect_f: str, neuron, last_neuron, fused: bool, pack_spikes: bool) -> Style:
    """The style of a network's blocks from the user's arguments; ``neuron=None`` means IF.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """
    make = _maker(neuron, "neuron") or default_neuron
    return Style(residual, connect_f, make, fused, pack_spikes, _maker(last_neuron, "last_neuron")).checked()


def _maker(neuron, name: str) -> Callable[[], nn.Module] | None:
    """A function that makes a new neuron layer in each call; None stays None."""
    if neuron is None:
        return None
    if isinstance(neuron, nn.Module):
        return lambda: copy.deepcopy(neuron)
    if not callable(neuron) or isinstance(neuron, Surrogate):
        raise TypeError(f"{name} must be a class, a function or a node, got {type(neuron).__name__}")

    def make() -> nn.Module:
        made = neuron()
        if not isinstance(made, nn.Module):
            raise TypeError(f"{name} must make a module each time it is called, got {type(made).__name__}")
        return made

    return make


def check_count(name: str, value: int) -> None:
    """Raises TypeError or ValueError, with the name of the argument, unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_stages(blocks: Sequence[int], widths: Sequence[int]) -> None:
    """Raises ValueError unless there is at least one stage and each stage has blocks and channels."""
    if len(blocks) != len(widths) or not blocks:
        raise ValueError(f"blocks and widths must have one entry per stage, got {list(blocks)} and {list(widths)}")
    if min(blocks) < 1 or min(widths) < 1:
        raise ValueError(f"blocks and widths must be positive, got {list(blocks)} and {list(widths)}")


def check_kernel(kernel: int) -> int:
    """Returns the kernel size if it is odd, so that the convolution can keep the image size; else raises."""
    if isinstance(kernel, bool) or not isinstance(kernel, int):
        raise TypeError(f"stem_kernel must be an int, got {type(kernel).__name__}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"stem_kernel must be odd, got {kernel}")
    return kernel


class Network(nn.Module):
    """Base class of the spiking networks. Subclasses add their layers, ``fc`` and ``features``.

    Args:
        T: number of time-steps for which a still image is shown. A sequence has its own T.
        in_channels: channels of the input.
        num_classes: number of logits.
        return_seq: default of ``forward``'s ``return_seq``.

    Attributes:
        step_mode: ``"m"`` (default): one call computes all time-steps. ``"s"``: one call takes one frame
            ``[N, C, H, W]``, and the neurons keep their state until :func:`sewsnn.functional.reset_net`. Set it, and
            the neurons' mode, with :func:`sewsnn.functional.set_step_mode`. In evaluation mode T such calls return the
            logits of one call with ``return_seq=True``. (In training, batch norm sees one time-step at a time.)

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    fc: nn.Module

    def __init__(self, T: int, in_channels: int, num_classes: int, return_seq: bool):
        super().__init__()
        for name, value in (("T", T), ("in_channels", in_channels), ("num_classes", num_classes)):
            check_count(name, value)
        self.T = T
        self.return_seq = return_seq
        self.step_mode = "m"

    def features(self, x: Tensor) -> Tensor:
        """The features that the classifier ``fc`` reads.

        Args:
            x: a still image ``[N, C, H, W]``, shown T times, or a sequence ``[T, N, C, H, W]``.

        Returns:
            ``[T, N, F]``, pooled over space.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, return_seq: bool | None = None) -> Tensor:
        """Classifies images or sequences.

        Args:
            x: still images ``[N, C, H, W]``, which are convolved once and shown T times, or a sequence
                ``[T, N, C, H, W]``. In single-step mode: the next frame ``[N, C, H, W]``.
            return_seq: return the logits of every time-step. Default None: ``return_seq`` of the constructor.

        Returns:
            Logits ``[N, num_classes]``, the mean over time; with ``return_seq`` ``[T, N, num_classes]``. In single-step
            mode: the logits ``[N, num_classes]`` of this frame.

        Raises:
            ValueError: x has the wrong number of dimensions.
        """
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            # Inductor cannot lay out convolutions of symbolic height and width (pytorch#185510). repr makes the numbers
            # constants, and torch.compile then makes one graph for each image size.
            _ = f"{x.shape[-2]!r} {x.shape[-1]!r}"
        if self.step_mode == "s":
            if x.dim() != 4:
                raise ValueError(f"x must be one frame [N, C, H, W] in single-step mode, got shape {list(x.shape)}")
            return self.fc(self.features(x.unsqueeze(0))[0])
        if x.dim() not in (4, 5):
            raise ValueError(f"x must be [N, C, H, W] or [T, N, C, H, W], got shape {list(x.shape)}")
        features = self.features(x)
        return_seq = self.return_seq if return_seq is None else return_seq
        return self.fc(features) if return_seq else self.fc(features.mean(0))


def zero_init(model: nn.Module) -> None:
    """Starts each block as the identity (main paper, section 3.2).

    The weight of its last BN becomes 0. With AND, which needs A = 1, its bias becomes 1 as well. Plain blocks stay
    unchanged: without a shortcut they would be silent.
    """
    for module in model.modules():
        if isinstance(module, Block) and module.style.residual != "plain":
            nn.init.zeros_(module.last_bn.weight)
            if module.style.residual == "sew" and module.style.connect_f == "AND":
                nn.init.ones_(module.last_bn.bias)


def run_blocks(modules: list[nn.Module], s: Output, pool: nn.Module | None = None) -> Output:
    """Runs the modules one after the other, and passes ``skip`` from block to block where no hook needs the call.

    ``pool``: the pooling after the last module, which runs with its last op where that is possible.
    """
    pooled = pool is None
    fits = isinstance(pool, nn.MaxPool2d) and not pool.return_indices  # somebody may have put another module there
    for i, module in enumerate(modules):
        last = i + 1 == len(modules)
        if isinstance(module, Block) and type(module).forward is Block.forward and not must_be_called(module):
            s = module.run(s, return_skip=not last, pool=pool if last and fits else None)
            pooled = pooled or (last and fits)
        else:
            s = one_reader(module(s.out))
    return s if pooled else one_reader(over_time(pool, s.out))


def one_reader(s_seq: Tensor) -> Output:
    """A tensor as an ``Output`` without ``skip``."""
    return Output(s_seq, None, None, None)


def flat_mean(pool: nn.Module, s_seq: Tensor) -> Tensor:
    """Pools over space: ``[T, N, C, H, W]`` to ``[T, N, C]``."""
    return over_time(lambda s: pool(s).flatten(1), s_seq)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters of ``model``.

    Args:
        model: any module.

    Returns:
        The number of elements of all parameters that require a gradient.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
