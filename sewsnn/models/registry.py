"""The registry of models by name."""

from collections.abc import Callable

from torch import nn

from sewsnn.errors import unknown

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator that registers a function under its own name, so that :func:`create_model` can call it.

    Args:
        builder: a function that takes keyword arguments and returns a network.

    Returns:
        ``builder`` itself.

    Example:
        >>> @register_model  # doctest: +SKIP
        ... def my_net(**kwargs): return SEWResNet(BasicBlock, [1, 1], [16, 32], **kwargs)
    """
    _MODELS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names that :func:`create_model` accepts.

    Returns:
        A sorted list of names.

    Example:
        >>> names = list_models()
        >>> "sew_resnet18" in names
        True
    """
    return sorted(_MODELS)


def create_model(name: str, **kwargs) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of :func:`list_models`.
        kwargs: arguments of the network, for example ``num_classes``, ``T``, ``connect_f``, ``neuron``,
            ``in_channels``, ``return_seq``. :class:`SEWResNet` documents them for all ``*_resnet*``, :class:`PooledNet`
            for all ``*_net``.

    Returns:
        The network, with random weights.

    Raises:
        ValueError: there is no such model (the message lists the nearest names), or an argument has a wrong value.
        TypeError: an argument has a wrong type, or the network does not take it.

    Example:
        >>> net = create_model("sew_resnet18", num_classes=10, T=4)
        >>> logits = net(torch.randn(1, 3, 64, 64))  # [N, num_classes]
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(unknown("model", name, _MODELS))
    return _MODELS[name](**kwargs)
