"""The surrogates: their formulas, primitives and compiled forms."""

import copy
import math
import pickle

import pytest
import torch

from sewsnn import functional, surrogate
from sewsnn.ops.registry import SURROGATES
from sewsnn.surrogate import Surrogate

ALL = [getattr(surrogate, name) for name in surrogate.__all__ if name != "Surrogate"]
PARAMETERS = (0.5, 1.0, 2.0, 4.0)


def test_each_has_the_number_of_its_compiled_form():
    assert {cls.__name__: cls.kind for cls in ALL} == SURROGATES


@pytest.mark.parametrize("cls", ALL)
def test_gradient_is_the_derivative_of_the_primitive(cls):
    for parameter in PARAMETERS:
        x = torch.linspace(-3.01, 3.02, 257, dtype=torch.float64, requires_grad=True)
        (derivative,) = torch.autograd.grad(cls(parameter).primitive(x).sum(), x)
        torch.testing.assert_close(derivative, cls(parameter).gradient(x.detach()), rtol=1e-10, atol=1e-12)
        assert cls(parameter).primitive(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cls", ALL)
def test_compiled_form(cls, dtype, device):
    """One IF step from v = 0 with dL/ds = 1 has dL/dx = sigma'(x - v_threshold)."""
    x = torch.cat([torch.linspace(-9, 9, 4001, dtype=torch.float64), torch.tensor([0.0, 1e-30, 40, -40, 1e30, -1e30])])
    x = x.to(dtype).to(device)
    for parameter in PARAMETERS:
        inputs = (x + 1).unsqueeze(0).requires_grad_()
        s, _ = functional.if_multistep(inputs, surrogate_function=cls(parameter), backend="native")
        (native,) = torch.autograd.grad(s.sum(), inputs)
        formula = cls(parameter).gradient((inputs.detach() - 1).double()).to(dtype)
        # exp is within 2 ulp, its argument (up to 40) within 1/2 ulp: 40 ulp in total; results below 1e-37 may be 0.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(native[0], formula[0], rtol=64 * eps, atol=1e-37)


@pytest.mark.parametrize("cls", ALL)
def test_symmetric_and_callable(cls):
    function = cls()
    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(function.gradient(x), function.gradient(-x), rtol=0, atol=0)
    s = function(x)
    assert torch.equal(s, (x >= 0).double())
    s.sum().backward()
    torch.testing.assert_close(x.grad, function.gradient(x.detach()))


def test_papers_values():
    """Table S3: ArcTan with alpha = 2, the rectangle of width 1, the constant 1."""
    x = torch.tensor([0.0, 0.3, -0.7], dtype=torch.float64)
    torch.testing.assert_close(surrogate.ATan().gradient(x), 1 / (1 + (math.pi * x) ** 2))
    assert surrogate.Rectangular().gradient(x).tolist() == [1, 1, 0]
    assert surrogate.Constant().gradient(x).tolist() == [1, 1, 1]


def test_zero_one_gradients():
    """A.5: (1 + pi^2 / 4) / (1 + (pi x)^2) is 1 where the input is 0 or 1 and the threshold 1/2."""
    x = torch.tensor([0.0, 1.0, 0.2], dtype=torch.float64) - 0.5
    formula = (1 + math.pi**2 / 4) / (1 + (math.pi * x) ** 2)
    torch.testing.assert_close(surrogate.UnitATan().gradient(x), formula)
    assert surrogate.UnitATan().gradient(x)[:2].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("cls", ALL)
def test_values_compare_copy_and_pickle(cls):
    function = cls(1.5)
    for other in (copy.deepcopy(function), pickle.loads(pickle.dumps(function))):
        assert other == function and hash(other) == hash(function)
    assert function != cls(2.5) and repr(function) == f"{cls.__name__}({cls.parameter_name}=1.5)"


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_bad_value(cls, value):
    with pytest.raises(ValueError, match=f"{cls.__name__}: {cls.parameter_name} must be positive and finite"):
        cls(value)


@pytest.mark.parametrize("value", ["2", None, True])
def test_bad_type(value):
    with pytest.raises(TypeError, match="ATan: alpha must be a number"):
        surrogate.ATan(value)


@pytest.mark.parametrize("cls", ALL)
def test_the_number_is_read_by_name_and_stays(cls):
    """Nodes may share a surrogate, so its parameter cannot be assigned; an assignment would have no effect."""
    function = cls(1.5)
    assert getattr(function, cls.parameter_name) == function.parameter == 1.5
    assert not hasattr(function, "no_such_name")
    for name in (cls.parameter_name, "parameter"):
        for value in (3.0, torch.nn.Parameter(torch.tensor(3.0)), math.nan):
            with pytest.raises(
                AttributeError, match=rf"{name} of {cls.__name__}\(.*=1.5\) cannot be changed.* new one"
            ):
                setattr(function, name, value)
    with pytest.raises(AttributeError, match="derive a class and override gradient"):
        function.gradient = torch.ones_like
    assert function == cls(1.5)


@pytest.mark.filterwarnings("ignore::sewsnn.BackendWarning")
def test_a_class_derived_from_a_compiled_one():
    """A class with its own gradient does not use the kernel; a class that changes only the default does."""

    class Flat(surrogate.ATan):
        def gradient(self, x):
            return torch.full_like(x, 7.0)

    class Gradient:
        gradient = Flat.gradient

    class Mixed(Gradient, surrogate.ATan):
        pass

    class Wide(surrogate.ATan):
        def __init__(self):
            super().__init__(0.5)

    class Free(Surrogate):  # one of their own may do with its attributes what it likes
        def __init__(self):
            super().__init__(2.0)
            self.alpha = self.parameter = 3.0

        def gradient(self, x):
            return self.alpha * torch.ones_like(x)

    assert (Flat().kind, Mixed().kind, Wide().kind) == (None, None, surrogate.ATan.kind)
    for function, slope in ((Flat(), 7.0), (Mixed(), 7.0), (Free(), 3.0)):
        x = torch.randn(1, 10, requires_grad=True)
        functional.if_multistep(x, surrogate_function=function)[0].sum().backward()
        assert (x.grad == slope).all()


def test_own_surrogate_runs_on_the_torch_backend():
    class Triangle(Surrogate):
        def gradient(self, x):
            return (1 - x.abs()).clamp(min=0)

    x = torch.randn(4, 10, requires_grad=True)
    s, _ = functional.if_multistep(x, surrogate_function=Triangle(), backend="torch")
    s.sum().backward()
    assert x.grad.abs().sum() > 0
