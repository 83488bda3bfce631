"""Invalid input of the fused op: the error names the argument and what was expected, and nothing else changes."""

import math

import pytest
import torch
from torch import nn

import sewsnn
from sewsnn import neuron
from sewsnn.layers import BNNeuron, NeuronConnection, bn_neuron
from sewsnn.ops.bn import NO_NEURON
from sewsnn.surrogate import Surrogate

Z = torch.arange(48.0).view(3, 2, 4, 2)
S = torch.ones_like(Z)


class Own(Surrogate):
    def gradient(self, x):
        return torch.ones_like(x)


#: invalid arguments, the type of the error, and its message
BAD_CALLS = [
    ({"z_seq": [1.0]}, TypeError, "z_seq must be a tensor"),
    ({"z_seq": Z.long()}, TypeError, "z_seq .*int64"),
    ({"z_seq": Z.to_sparse()}, TypeError, "z_seq must be a dense"),
    ({"z_seq": Z[0, 0]}, ValueError, r"z_seq must be \[T, N, C, ...\], got shape \[4, 2\]"),
    ({"z_seq": Z[:0]}, ValueError, r"z_seq must have at least one time-step, got shape \[0, 2, 4, 2\]"),
    ({"z_seq": Z[0, 0, 0], "T": 3}, ValueError, r"z_seq must be a still image \[N, C, ...\], got shape \[2\]"),
    ({"z_seq": Z[:, :, :3]}, ValueError, r"z_seq must be .* with 4 channels, got shape \[3, 2, 3, 2\]"),
    ({"z_seq": Z[0], "bn": nn.BatchNorm2d(2), "T": 3}, ValueError, "still image .* with 2 channels"),
    ({"z_seq": Z[:1, :1, :, :1]}, ValueError, r"more than one value per channel in training, got shape \[1, 1, 4, 1\]"),
    ({"z_seq": Z[:0, 0, :, 0], "T": 2}, ValueError, "z_seq must have more than one value per channel in training"),
    ({"bn": "BatchNorm2d"}, TypeError, "bn must be a module or None, got 'BatchNorm2d'"),
    ({"bn": nn.BatchNorm2d}, TypeError, "bn must be a module or None"),
    ({"bn": nn.BatchNorm2d(4, device="meta")}, ValueError, "bn must be on the device of z_seq, cpu, got meta"),
    ({"bn": nn.BatchNorm2d(4, affine=False, device="meta")}, ValueError, "bn must be on the device of z_seq"),
    ({"bn": nn.BatchNorm2d(4, eps=nn.Parameter(torch.tensor(1e-5)))}, TypeError, "bn.eps must be a number, got Param"),
    (
        {"bn": nn.BatchNorm2d(4, momentum=nn.Parameter(torch.tensor(0.1)))},
        TypeError,
        "bn.momentum must be a number, got P",
    ),
    ({"bn": nn.BatchNorm2d(4, eps="1e-5")}, TypeError, "bn.eps must be a number, got str"),
    ({"bn": nn.BatchNorm2d(4, momentum=math.nan)}, ValueError, "bn.momentum must be finite, got nan"),
    ({"neuron": neuron.IFNode}, TypeError, "neuron must be a module or None"),
    ({"shortcut": S}, ValueError, "shortcut is given, but connect_f is None"),
    ({"connect_f": "ADD"}, TypeError, "shortcut must be a tensor .connect_f is 'ADD'., got NoneType"),
    ({"connect_f": "OR", "shortcut": S}, ValueError, "connect_f must be None or one of 'ADD', 'AND', 'IAND', got 'OR'"),
    ({"connect_f": "AND", "shortcut": S, "connect_before": True}, ValueError, "connect_f must be 'ADD', got 'AND'"),
    ({"connect_before": True}, ValueError, "connect_before adds the shortcut: connect_f must be 'ADD', got None"),
    ({"connect_f": "ADD", "shortcut": S[0]}, ValueError, r"shortcut must have the shape of out, \[3, 2, 4, 2\], got"),
    ({"connect_f": "ADD", "shortcut": S[:1]}, ValueError, r"shortcut must have the shape of out.*got \[1, 2, 4, 2\]"),
    ({"connect_f": "ADD", "shortcut": S, "T": 5, "z_seq": Z[0]}, ValueError, r"shape of out, \[5, 2, 4, 2\], got \[3,"),
    (
        {"connect_f": "ADD", "shortcut": S.half()},
        TypeError,
        "shortcut must have the dtype of z_seq, .*float32, got .*16",
    ),
    (
        {"connect_f": "ADD", "shortcut": S.to("meta")},
        ValueError,
        "shortcut must be on the device of z_seq, cpu, got meta",
    ),
    ({"T": 0, "z_seq": Z[0]}, ValueError, "T must be at least 1, got 0"),
    ({"T": 2.0, "z_seq": Z[0]}, TypeError, "T must be an int or None, got float"),
    ({"T": True, "z_seq": Z[0]}, TypeError, "T must be an int or None, got bool"),
    (
        {"neuron": neuron.IFNode(surrogate_function=Own(), backend="native")},
        sewsnn.BackendError,
        "backend='native' cannot run: the surrogate Own",
    ),
]


#: without the op torch raises these errors
TORCHS = ("value per channel", "bn must be on the device", "backend=", "bn.eps", "bn.momentum")


@pytest.mark.parametrize("change, kind, message", BAD_CALLS, ids=[m for *_, m in BAD_CALLS])
def test_bad_argument(change, kind, message):
    """The message is the same with the op and with the modules, and the norm and the neuron stay unchanged."""
    for fused in (True,) if any(words in message for words in TORCHS) else (True, False):
        call = {"z_seq": Z, "bn": nn.BatchNorm2d(4), "neuron": neuron.IFNode(), **change, "fused": fused}
        with pytest.raises(kind, match=message):
            bn_neuron(**call)
        bn, node = call["bn"], call["neuron"]
        if isinstance(bn, nn.Module) and bn.running_mean.device.type != "meta":
            assert bn.num_batches_tracked == 0 and not bn.running_mean.any() and (bn.running_var == 1).all()
        assert not isinstance(node, nn.Module) or node.v is None


@pytest.mark.parametrize(
    "settings, kind, message",
    [
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_features": 4.0}, TypeError, "num_features must be an int, got float"),
        ({"num_features": True}, TypeError, "num_features must be an int, got bool"),
        ({"neuron": "IF"}, TypeError, "neuron must be a node of sewsnn.neuron, None or False, got str"),
        ({"neuron": True}, TypeError, "neuron must be a node"),
        ({"connect_f": "add"}, ValueError, "connect_f must be None or one of 'ADD', 'AND', 'IAND', got 'add'"),
        ({"connect_f": "IAND", "connect_before": True}, ValueError, "connect_f must be 'ADD', got 'IAND'"),
    ],
)
def test_bad_layer(settings, kind, message):
    with pytest.raises(kind, match=message):
        BNNeuron(**{"num_features": 4, **settings})
    if "connect_f" in settings:
        with pytest.raises(kind, match=message):
            NeuronConnection(neuron.IFNode(), **settings)


def test_parameters_are_made_where_and_as_asked():
    layer = BNNeuron(4, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())


FORWARD = {
    "z": Z,
    "shortcut": None,
    "statistics": torch.ones(2, 4),
    "weight": None,
    "bias": None,
    "leak": None,
    "eps": 1e-5,
    "connect": 0,
    "T": 0,
    "kind": 0,
    "tau": 2.0,
    "decay_input": True,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "surrogate": 0,
    "alpha": 2.0,
    "detach_reset": True,
    "v_mode": 0,
    "needs_grad": True,
    "pack": False,
    "training": False,
}
OPTIONS = {name: FORWARD[name] for name in list(FORWARD)[6:17]}
TENSORS = {name: FORWARD[name] for name in list(FORWARD)[1:6]}
KEPT = torch.zeros(0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"z": Z.int()}, "must be float32"),
        ({"z": Z[0, 0]}, "z must be .T, N, C"),
        ({"T": -1}, "T must be at least 0"),
        ({"connect": 5}, "unknown connection"),
        ({"connect": 1}, "a connection needs a shortcut"),
        ({"shortcut": S}, "a connection needs a shortcut, and nothing else does"),
        ({"connect": 1, "shortcut": S[:, :1]}, "shortcut must have the shape"),
        ({"connect": 1, "shortcut": S.double()}, "shortcut has the wrong dtype"),
        ({"statistics": torch.ones(2, 3)}, "statistics must have 8 numbers"),
        ({"statistics": torch.ones(2, 4).double()}, "statistics must have 8 numbers in the dtype of the state"),
        ({"statistics": torch.ones(4, 2).t()}, "statistics must have 8 numbers"),
        ({"weight": torch.ones(3)}, "weight must have 4 numbers"),
        ({"bias": torch.ones(4).half()}, "bias must have 4 numbers in the dtype of the state"),
        ({"statistics": None, "bias": torch.ones(4)}, "weight and bias need statistics"),
        ({"kind": 99}, "unknown neuron kind"),
        ({"kind": 2}, "leak is needed"),
        ({"kind": 2, "leak": torch.zeros(2)}, "leak must be one number"),
        ({"kind": 1, "tau": math.nan}, "tau must be at least 1"),
        ({"v_threshold": math.inf}, "v_threshold must be finite"),
        ({"surrogate": 99}, "unknown surrogate"),
        ({"v_mode": 2}, "v_mode must be 0 or 1"),
        ({"pack": True, "kind": NO_NEURON}, "only the spikes of a neuron can be packed"),
        ({"pack": True, "connect": 1, "shortcut": S}, "only the spikes of a neuron can be packed"),
        ({"pack": True, "z": Z[:, :1, :, :1]}, "8 to a byte"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_the_op_itself_checks(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.bn_neuron_forward(*{**FORWARD, **change}.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grad_out": S[:, :1]}, "grad_out must have the shape"),
        ({"grad_out": S.double()}, "grad_out has the wrong dtype"),
        ({"grad_skip": S[:2]}, "grad_skip must have the shape"),
        ({"checkpoints": torch.zeros(3)}, "checkpoints must be those of a forward"),
        ({"need_leak": True}, "only PLIF has a leak"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_the_reduction_checks(change, message):
    arguments = {
        "grad_out": S,
        "grad_skip": None,
        "z": Z,
        **TENSORS,
        "checkpoints": KEPT,
        **OPTIONS,
        "need_leak": False,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.bn_neuron_reduce(*{**arguments, **change}.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grad_out": S[:2]}, "grad_out must have the shape"),
        ({"sums": torch.ones(2, 3)}, "sums must have 8 numbers"),
        ({"checkpoints": torch.zeros(3)}, "checkpoints must be those of a forward"),
        ({"need_shortcut": True}, "shortcut has no gradient of its own"),
        ({"need_shortcut": True, "connect": 1, "shortcut": S}, "shortcut has no gradient of its own"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_the_second_pass_checks(change, message):
    arguments = {"grad_out": S, "z": Z, **TENSORS, "checkpoints": KEPT, "sums": None, "count": 1.0, **OPTIONS}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sewsnn.bn_neuron_apply(*{**arguments, "need_shortcut": False, **change}.values())


def test_the_statistics_ops_check():
    for bad, message in ((Z[:, :0], "z must not be empty"), (Z.int(), "must be float32"), (Z[0, 0], "z must be")):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.sewsnn.bn_statistics(bad, 0, True)
    update = torch.ops.sewsnn.bn_update
    for mean, var in ((torch.ones(3), torch.ones(4)), (torch.ones(4), torch.ones(4).double())):
        with pytest.raises(RuntimeError, match="running statistics must be"):
            update(torch.ones(2, 4), 0.1, 6.0, mean, var)
    with pytest.raises(RuntimeError, match=r"statistics must be \[2, C\]"):
        update(torch.ones(4), 0.1, 6.0, torch.ones(4), torch.ones(4))
