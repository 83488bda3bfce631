"""Models by name."""

from collections.abc import Callable

from torch import nn

from sewsnn.errors import unknown

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: makes ``builder`` known under its own name."""
    _MODELS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names :func:`create_model` knows."""
    return sorted(_MODELS)


def create_model(name: str, **kwargs) -> nn.Module:
    """Builds a model.

    Args:
        name: one of :func:`list_models`.
        kwargs: ``num_classes``, ``T``, ``connect_f``, ``neuron`` ... as documented by the model.

    Raises:
        ValueError: no such model; the message names the nearest.
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(unknown("model", name, _MODELS))
    return _MODELS[name](**kwargs)
