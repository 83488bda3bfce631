"""Models by name."""

import difflib
from collections.abc import Callable

from torch import nn

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
    if name not in _MODELS:
        near = difflib.get_close_matches(str(name), _MODELS, n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}; known: {', '.join(list_models())}")
    return _MODELS[name](**kwargs)
