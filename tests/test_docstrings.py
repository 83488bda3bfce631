"""Every public docstring is complete by itself: it documents each argument, and its examples run."""

import dataclasses
import doctest
import importlib
import inspect
import re

import pytest
import torch

import sewsnn

pytestmark = pytest.mark.usefixtures("one_thread")

MODULES = ("neuron", "functional", "surrogate", "layers", "models", "convert", "analysis", "export")
REFERENCES = ("All else as in", "as in :func:", "rest as in", "Raises: as")  # in place of an Args section


def section(doc: str, title: str) -> str:
    """The indented text below ``title:``."""
    found = re.search(rf"^{title}:\n((?:(?:[ ]+.*)?\n?)*)", doc, re.MULTILINE)
    return found[1] if found else ""


def documented(doc: str, titles: tuple[str, ...] = ("Args",)) -> set[str]:
    """The names that begin an entry of these sections: ``name: text``."""
    return {name for title in titles for name in re.findall(r"^ {4}(\w+): \S", section(doc, title), re.MULTILINE)}


def parameters(function) -> list[str]:
    """The names in a signature, without ``self`` and the collecting ``*args``."""
    found = inspect.signature(function).parameters.values()
    return [p.name for p in found if p.name not in ("self", "cls") and p.kind is not p.VAR_POSITIONAL]


def constructor_parameters(kind: type) -> set[str]:
    """The parameters of ``__init__``; if it passes ``**kwargs`` on, also those of the base class."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("sewsnn"):
            own = parameters(vars(base)["__init__"])
            names.update(own)
            if "kwargs" not in own:
                return names - {"kwargs"}
    return names


def is_record(kind: type) -> bool:
    """Returns whether the class is a result with an Attributes section for its fields."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def members(kind: type):
    """Public methods and properties that the class, or a base class in sewsnn, defines."""
    for name in sorted(dir(kind)):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        member = vars(owner).get(name)
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and owner.__module__.startswith("sewsnn") and inspect.isfunction(function):
            yield name, function


def public():
    """Yields each public docstring with the parameters that it must document."""
    for module in MODULES:
        scope = importlib.import_module(f"sewsnn.{module}")
        for name in scope.__all__:
            thing, path = getattr(scope, name), f"{module}.{name}"
            if inspect.isfunction(thing):
                yield path, inspect.getdoc(thing), parameters(thing), ("Args",)
            elif inspect.isclass(thing):
                record = is_record(thing)
                wanted = parameters(thing) if record else sorted(constructor_parameters(thing))
                yield path, inspect.getdoc(thing), wanted, ("Attributes",) if record else ("Args",)
                for member, function in members(thing):
                    # A method without a docstring shows that of the method it overrides.
                    doc = inspect.getdoc(getattr(thing, member))
                    yield f"{path}.{member}", doc, parameters(function), ("Args",)


PUBLIC = {path: case for path, *case in public()}


@pytest.mark.parametrize("path", PUBLIC)
def test_every_parameter_is_documented(path):
    doc, wanted, titles = PUBLIC[path]
    assert doc, f"{path} has no docstring"
    missing = set(wanted) - documented(doc, titles)
    assert not missing, f"{path}: {titles[0]} does not document {', '.join(sorted(missing))}"
    assert not [words for words in REFERENCES if words in doc], f"{path} refers to another docstring for its arguments"


@pytest.mark.parametrize("path", [path for path in PUBLIC if path.count(".") == 1])
def test_no_parameter_is_invented(path):
    doc, wanted, titles = PUBLIC[path]
    assert documented(doc, titles) <= set(wanted), path


def test_the_walk_finds_what_it_should():
    assert {"neuron.LIFNode", "neuron.LIFNode.reset", "layers.bn_neuron", "models.LoadReport.check"} <= PUBLIC.keys()
    assert {"tau", "decay_input", "store_v", "keep_state"} <= set(PUBLIC["neuron.LIFNode"][1])
    doc = "Sum.\n\nArgs:\n    a: one.\n        more: no.\n    b: two.\n\nReturns:\n    c: sum."
    assert documented(doc) == {"a", "b"}


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    """The examples run as shown, after ``import torch, sewsnn`` with the module's names; some only show the call."""
    scope = importlib.import_module(f"sewsnn.{module}")
    names = {"torch": torch, "nn": torch.nn, "sewsnn": sewsnn} | {name: getattr(scope, name) for name in scope.__all__}
    docs = {module: scope.__doc__} | {path: PUBLIC[path][0] for path in PUBLIC if path.startswith(f"{module}.")}
    runner = doctest.DocTestRunner(verbose=False)
    for path, doc in docs.items():
        test = doctest.DocTestParser().get_doctest(doc, dict(names), path, None, None)
        runner.run(test)
    assert runner.tries and not runner.failures
