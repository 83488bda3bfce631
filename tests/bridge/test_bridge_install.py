"""sewsnn.convert.install: models that ask for CuPy are built where it cannot run."""

import sys

import pytest
import torch
from sj_cases import V2
from spikingjelly.activation_based import functional, neuron

import sewsnn
from sewsnn.convert import install


@pytest.fixture(autouse=True)
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import of it raises ImportError


def nodes():
    found = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]
    if not V2:
        from spikingjelly.clock_driven import neuron as old

        found += [old.MultiStepIFNode, old.MultiStepLIFNode, old.MultiStepParametricLIFNode]
    return found


#: each class and version refuses CuPy with an error of its own
REFUSED = (AssertionError, NotImplementedError, TypeError, ImportError)


def test_nodes_are_built():
    before = {kind: kind.__init__ for kind in nodes()}
    for kind in nodes():
        with pytest.raises(REFUSED):
            kind(backend="cupy", **({} if "clock_driven" in kind.__module__ else {"step_mode": "m"}))
    with install() as installed:
        assert install() is installed and "CuPy cannot run here" in str(installed) and installed.reason
        for kind in nodes():
            settings = {} if "clock_driven" in kind.__module__ else {"step_mode": "m"}
            node = kind(backend="cupy", v_threshold=0.5, **settings)
            assert node.v_threshold == 0.5 and getattr(node, "backend", "torch") == "torch"
            expected = node(torch.ones(4, 3, 2))
            node.reset()
            assert len(sewsnn.convert.from_spikingjelly(node)) == 1
            assert torch.equal(node(torch.ones(4, 3, 2)), expected)
            assert any(kind.__qualname__ in line for line in installed.changes)
        functional.set_backend(torch.nn.Sequential(neuron.LIFNode(step_mode="m")), "cupy", neuron.BaseNode)
        with pytest.raises(TypeError, match="no_such_argument"):
            neuron.LIFNode(no_such_argument=1)
    assert {kind: kind.__init__ for kind in nodes()} == before
    assert hasattr(functional, "set_backend") == (not V2)
    for kind in nodes():
        with pytest.raises(REFUSED):
            kind(backend="cupy", **({} if "clock_driven" in kind.__module__ else {"step_mode": "m"}))
    installed.uninstall()  # a second time does nothing


def test_an_error_takes_the_changes_back():
    before = neuron.LIFNode.__init__
    with pytest.raises(ZeroDivisionError), install():
        _ = 1 / 0
    assert neuron.LIFNode.__init__ is before


def test_subclasses_and_places_of_the_argument():
    class Own(neuron.LIFNode):
        def __init__(self):
            super().__init__(tau=2.0, step_mode="m", backend="cupy")

    with install():
        assert getattr(Own(), "backend", "torch") == "torch"
        if not V2:
            node = neuron.IFNode(1.0, 0.0, neuron.surrogate.Sigmoid(), False, "m", "cupy")
            assert node.backend == "torch" and node.step_mode == "m"
            node.backend = "cupy"
            assert node.backend == "torch"
        else:
            with pytest.raises(TypeError):
                neuron.IFNode(no_such=1, backend="cupy")


def test_where_cupy_can_run(monkeypatch):
    from types import SimpleNamespace

    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    before = neuron.LIFNode.__init__
    installed = install()
    assert not installed.changes and "changed nothing" in str(installed) and neuron.LIFNode.__init__ is before
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 0)
    with install() as installed:
        assert installed.reason == "there is no GPU" and installed.changes
