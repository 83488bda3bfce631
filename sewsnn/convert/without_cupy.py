"""Lets models that ask for SpikingJelly's CuPy backend be built where CuPy cannot run: :func:`install`."""

import functools
import inspect
import logging
import sys
from importlib import import_module
from types import ModuleType

from sewsnn.errors import UserError

_PARTS = ("spikingjelly.clock_driven.neuron", "spikingjelly.activation_based.neuron")
_installed: "Installed | None" = None


class Installed:
    """The changes that :func:`install` made. As a context manager it takes them back at the end.

    Args:
        reason: why CuPy cannot run here; empty if it can.

    Attributes:
        changes: one line for each class or function of SpikingJelly that was changed.
        reason: why CuPy cannot run here; empty if it can, and nothing was changed.
    """

    def __init__(self, reason: str):
        self.reason = reason
        self.changes: list[str] = []
        self._undo: list[tuple[object, str, object]] = []

    def __str__(self) -> str:
        if not self.changes:
            why = "the nodes of this SpikingJelly have no backends" if self.reason else "CuPy can run here"
            return f"sewsnn.convert.install changed nothing: {why}"
        return (
            f"sewsnn.convert.install: CuPy cannot run here ({self.reason}). SpikingJelly nodes that ask for "
            'backend="cupy" are built with backend="torch" until uninstall(). from_spikingjelly(model) then lets '
            f"sewsnn compute them. Changed: {', '.join(self.changes)}"
        )

    def uninstall(self) -> None:
        """Takes all changes back. A second call does nothing."""
        global _installed
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        if _installed is self:
            _installed = None

    def __enter__(self) -> "Installed":
        return self

    def __exit__(self, *error) -> None:
        self.uninstall()

    def _change(self, owner, name: str, after) -> None:
        self._undo.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, after)
        self.changes.append(f"{getattr(owner, '__module__', owner.__name__)}.{owner.__name__}.{name}")


_ABSENT = object()


def install() -> Installed:
    """Lets models written with ``backend="cupy"`` be built where CuPy or a GPU is missing.

    SpikingJelly's nodes refuse ``backend="cupy"`` in their constructor if CuPy cannot run. After this call they take it
    and are built with ``backend="torch"``. ``functional.set_backend(net, "cupy")`` sets ``"torch"`` as well.
    SpikingJelly 2.0, whose nodes no longer have this argument, takes and ignores it. Call it before the model is
    built; :func:`from_spikingjelly` then lets sewsnn compute the neurons. Where CuPy can run, nothing changes.

    Returns:
        An object that says what was changed (``print`` it, or read ``changes``). Its ``uninstall()``, or the end of a
        ``with`` block, takes the changes back. A second call returns the same object.

    Raises:
        sewsnn.errors.UserError: SpikingJelly cannot be imported.

    Example:
        >>> with sewsnn.convert.install():  # doctest: +SKIP
        ...     from their_repository import model
        ...     net = model.spikformer()
        >>> sewsnn.convert.from_spikingjelly(net)  # doctest: +SKIP
    """
    global _installed
    if _installed is not None:
        return _installed
    parts, errors = [], []
    for name in _PARTS:
        try:
            parts.append(import_module(name))
        except ImportError as error:  # noqa: PERF203
            errors.append(error)
    if not parts:
        message = f"sewsnn.convert.install needs SpikingJelly ({errors[0]}): pip install spikingjelly"
        raise UserError(message) from errors[0]
    installed = Installed(_why_no_cupy())
    if installed.reason:
        for part in parts:
            _change_nodes(installed, part)
            _change_base(installed, part)
        _installed = installed
    logging.getLogger("sewsnn").warning("%s", installed)
    return installed


def _why_no_cupy() -> str:
    """Why CuPy cannot run here; empty if it can."""
    try:
        import cupy
    except Exception as error:  # a broken installation raises other errors as well
        return f"{type(error).__name__}: {error}"
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() > 0 else "there is no GPU"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _change_nodes(installed: Installed, part: ModuleType) -> None:
    """Changes the constructors of the nodes that have a backend, or had one in earlier versions."""
    for kind in {id(kind): kind for kind in vars(part).values() if inspect.isclass(kind)}.values():
        if not issubclass(kind, part.BaseNode) or "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        if "backend" in parameters:
            installed._change(kind, "__init__", _with_torch_backend(kind.__init__))
        elif not hasattr(part, "check_backend") and _lacks_backend(part):
            installed._change(kind, "__init__", _without_backend(kind.__init__))


def _lacks_backend(part: ModuleType) -> bool:
    """Returns whether the nodes of this part have no backend at all (SpikingJelly 2.0)."""
    names = inspect.signature(part.BaseNode.__init__).parameters
    return part.__name__.startswith("spikingjelly.activation_based") and "backend" not in names


def _with_torch_backend(init):
    signature = inspect.signature(init)

    @functools.wraps(init)
    def build(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            return init(self, *args, **kwargs)  # raises the error
        if given.get("backend") == "cupy":
            if "backend" in kwargs:
                kwargs["backend"] = "torch"
            else:
                place = list(signature.parameters).index("backend") - 1
                args = (*args[:place], "torch", *args[place + 1 :])
        return init(self, *args, **kwargs)

    return build


def _without_backend(init):
    @functools.wraps(init)
    def build(self, *args, backend="torch", **kwargs):
        return init(self, *args, **kwargs)

    return build


def _change_base(installed: Installed, part: ModuleType) -> None:
    """Changes the setter of ``backend`` (0.0.0.0.14's activation_based), and adds ``set_backend`` where it is gone."""
    package = part.__name__.rpartition(".")[0]
    base = sys.modules.get(f"{package}.base")
    memory = getattr(base, "MemoryModule", None)
    backend = vars(memory).get("backend") if memory is not None else None
    if isinstance(backend, property) and backend.fset is not None:

        def assign(self, value):
            backend.fset(self, "torch" if value == "cupy" else value)

        installed._change(memory, "backend", property(backend.fget, assign, backend.fdel, backend.__doc__))
    functional = import_module(f"{package}.functional")
    if package.endswith("activation_based") and not hasattr(functional, "set_backend"):

        def set_backend(net, backend, instance=None):
            """SpikingJelly 2.0 chooses the backend itself: this call changes nothing."""

        installed._change(functional, "set_backend", set_backend)
