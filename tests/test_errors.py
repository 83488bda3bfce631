"""Invalid input raises an error that names the argument, and changes nothing else."""

import math
import warnings

import pytest
import torch

import sewsnn
from sewsnn import functional, neuron
from sewsnn.ops import load
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan, Surrogate

X = torch.zeros(4, 2, 3)
W = torch.tensor(0.0)


class Own(Surrogate):
    def gradient(self, x):
        return torch.ones_like(x)


BAD_CALLS = [
    (lambda: functional.if_multistep([1.0]), TypeError, "x_seq must be a tensor"),
    (lambda: functional.if_multistep(X.long()), TypeError, "x_seq .*int64"),
    (lambda: functional.if_multistep(X.bool()), TypeError, "x_seq .*bool"),
    (lambda: functional.lif_multistep(X.to(torch.complex64)), TypeError, "x_seq .*complex64"),
    (lambda: functional.if_multistep(X.to_sparse()), TypeError, "x_seq must be a dense"),
    (lambda: functional.if_multistep(torch.tensor(1.0)), ValueError, r"x_seq must be \[T"),
    (lambda: functional.if_multistep(X[:0]), ValueError, "x_seq .* T = 0"),
    (lambda: functional.if_multistep(X, 0.0), TypeError, "v must be a tensor or None"),
    (lambda: functional.if_multistep(X, torch.zeros(2, 4)), ValueError, r"v must have the shape.*\[2, 3\].*\[2, 4\]"),
    (lambda: functional.if_multistep(X, torch.zeros(4, 2, 3)), ValueError, "v must have the shape"),
    (lambda: functional.if_multistep(X, torch.zeros(2, 3).double()), TypeError, "v must be torch.float32.*float64"),
    (lambda: functional.if_multistep(X, torch.zeros(2, 3).half()), TypeError, "v must be torch.float32.*float16"),
    (lambda: functional.if_multistep(X, torch.zeros(2, 3, device="meta")), ValueError, "v must be on the device.*meta"),
    (lambda: functional.lif_multistep(X, tau=0.99), ValueError, "tau must be at least 1, got 0.99"),
    (lambda: functional.lif_multistep(X, tau=math.nan), ValueError, "tau must be finite"),
    (lambda: functional.lif_multistep(X, tau="2"), TypeError, "tau must be a number"),
    (lambda: functional.if_multistep(X, v_threshold=math.inf), ValueError, "v_threshold must be finite"),
    (lambda: functional.if_multistep(X, v_threshold=None), TypeError, "v_threshold must be a number"),
    (lambda: functional.if_multistep(X, v_reset=-math.inf), ValueError, "v_reset must be finite"),
    (lambda: functional.if_multistep(X, surrogate_function="ATan"), TypeError, "surrogate_function must be"),
    (lambda: functional.if_multistep(X, backend="cuda"), ValueError, "backend must be one of .*'native'.*'cuda'"),
    (lambda: functional.if_multistep(X, backend="cupy"), sewsnn.BackendError, "backend='cupy' cannot run"),
    (
        lambda: functional.if_multistep(X, surrogate_function=Own(), backend="native"),
        sewsnn.BackendError,
        "backend='native' cannot run: the surrogate Own",
    ),
    (lambda: load.resolve_backend("native", "xpu", ATan()), sewsnn.BackendError, "no kernels for xpu"),
    (lambda: functional.plif_multistep(X, 0.5), TypeError, "w must be a tensor"),
    (lambda: functional.plif_multistep(X, torch.zeros(2)), ValueError, "w must be one floating-point number"),
    (lambda: functional.plif_multistep(X, torch.tensor(1)), ValueError, "w must be one floating-point number"),
    (lambda: functional.plif_multistep(X, W.to("meta")), ValueError, "w must be on the device"),
    (lambda: neuron.LIFNode(tau=0.5), ValueError, "tau must be at least 1"),
    (lambda: neuron.ParametricLIFNode(init_tau=1.0), ValueError, "init_tau must be above 1"),
    (lambda: neuron.ParametricLIFNode(tau_grad="no"), ValueError, "tau_grad must be"),
    (lambda: neuron.IFNode(v_threshold=math.nan), ValueError, "v_threshold must be finite"),
    (lambda: neuron.IFNode(step_mode="x"), ValueError, "step_mode must be"),
    (lambda: neuron.IFNode(backend="cuda"), ValueError, "backend must be one of .*'native'.*'cuda'"),
    (lambda: neuron.LIFNode(backend="cupy"), sewsnn.BackendError, "backend='cupy' cannot run"),
    (lambda: setattr(neuron.IFNode(), "backend", "cupy"), sewsnn.BackendError, "backend='cupy' cannot run"),
    (lambda: NeuronSpec("LIFE", ATan()), ValueError, "unknown neuron 'LIFE'; there are IF, LIF"),
    (lambda: neuron.IFNode(backend="gpu"), ValueError, "backend must be one of"),
    (lambda: neuron.IFNode(keep_state=True, store_v=False), ValueError, "keep_state=True needs store_v=True"),
]


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=[m for *_, m in BAD_CALLS])
def test_bad_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_nothing_changes_after_an_error():
    node = neuron.IFNode(keep_state=True, store_v_seq=True)
    node(torch.rand(4, 2, 3))
    v, v_seq = node.v, node.v_seq
    for bad in (torch.rand(4, 2, 5), torch.zeros(4, 2, 3).long(), torch.rand(0, 2, 3)):
        with pytest.raises((TypeError, ValueError)):
            node(bad)
        assert node.v is v and node.v_seq is v_seq


def test_auto_falls_back_aloud_and_once():
    load._announced.clear()
    x = torch.rand(4, 10)
    with pytest.warns(sewsnn.BackendWarning, match="slower torch backend: the surrogate Own"):
        functional.if_multistep(x, surrogate_function=Own())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.if_multistep(x, surrogate_function=Own())
        functional.if_multistep(x)  # native: nothing to say


FORWARD = {
    "x": X,
    "v": None,
    "leak": None,
    "kind": 1,
    "tau": 2.0,
    "decay_input": True,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "surrogate": 0,
    "alpha": 2.0,
    "detach_reset": True,
    "v_mode": 1,
    "needs_grad": True,
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": X.int()}, "x must be float32"),
        ({"x": torch.tensor(1.0)}, "x must be"),
        ({"x": X[:0]}, "at least one time-step"),
        ({"v": torch.zeros(2, 4)}, "v must have the shape"),
        ({"v": torch.zeros(3)}, "v must have the shape"),
        ({"v": torch.zeros(2, 3).double()}, "v has the wrong dtype"),
        ({"kind": 99}, "unknown neuron kind"),
        ({"kind": 2}, "leak is needed"),
        ({"kind": 2, "leak": torch.zeros(2)}, "leak must be one number"),
        ({"kind": 2, "leak": W.double()}, "leak must be one number"),
        ({"surrogate": 99}, "unknown surrogate kind"),
        ({"tau": 0.5}, "tau must be at least 1"),
        ({"tau": math.nan}, "tau must be at least 1"),
        ({"v_threshold": math.nan}, "v_threshold must be finite"),
        ({"v_reset": math.inf}, "v_reset must be finite"),
        ({"v_mode": 3}, "v_mode must be"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_the_op_itself_checks(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.neuron_forward(*{**FORWARD, **change}.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grad_s": torch.zeros(4, 2, 2)}, "grad_s must have the shape"),
        ({"grad_s": X.double()}, "grad_s has the wrong dtype"),
        ({"grad_v": X}, "grad_v must have the shape"),
        ({"checkpoints": torch.zeros(5)}, "checkpoints must be"),
        ({"x": torch.zeros(40, 2, 3), "grad_s": torch.zeros(40, 2, 3)}, "checkpoints must be"),
        ({"need_leak": True}, "leak"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_the_backward_op_checks(change, message):
    options = {k: FORWARD[k] for k in list(FORWARD)[3:-1]}
    arguments = {"grad_s": X, "grad_v": None, "x": X, "v": None, "leak": None, "checkpoints": torch.zeros(0)}
    arguments = {**arguments, **options, "need_v": False, "need_leak": False, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.neuron_backward(*arguments.values())
