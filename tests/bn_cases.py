"""Runs batch norm + neuron + connection with the compiled op and with the readable reference, and compares them."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import EPS, current
from torch import Tensor, nn

from sewsnn import neuron
from sewsnn.layers import bn_neuron
from sewsnn.ops import reference

NODES = {
    "IF": neuron.IFNode,
    "LIF": neuron.LIFNode,
    "LIF3": lambda **kw: neuron.LIFNode(tau=3.0, **kw),
    "PLIF": lambda **kw: neuron.ParametricLIFNode(init_tau=1.7, **kw),
    "none": lambda **kw: None,
}

#: connect_f and connect_before
CONNECTIONS = {
    "none": (None, False),
    "ADD": ("ADD", False),
    "AND": ("AND", False),
    "IAND": ("IAND", False),
    "before": ("ADD", True),
}


def norm(channels, dtype=torch.float32, device="cpu", training=True, seed=5, without=(), **settings) -> nn.BatchNorm2d:
    """A batch norm with random numbers instead of the initial ones."""
    bn = nn.BatchNorm2d(channels, **settings).to(device, dtype)
    for name in without:
        bn.register_parameter(name, None)
    with torch.no_grad():
        for i, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            if getattr(bn, name) is not None:
                values = current((channels,), dtype, device, scale=0.3, mean=0.8, seed=seed + i)
                getattr(bn, name).copy_(values.abs() + 0.1 if name == "running_var" else values)
    return bn.train(training)


@dataclass
class Case:
    """One call of the op. Each run has its own leaves z and shortcut."""

    z: Tensor
    connection: str = "none"
    node: str = "LIF"
    T: int | None = None
    training: bool = True
    return_skip: bool = False
    norm: dict[str, Any] | None = field(default_factory=dict)  # None: no normalisation
    neuron: dict[str, Any] = field(default_factory=dict)
    shortcut: Tensor | None = None

    def __post_init__(self):
        if self.connection != "none" and self.shortcut is None:
            shape = self.z.shape if self.T is None else (self.T, *self.z.shape)
            spikes = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
            self.shortcut = (
                (spikes + 0.25).to(self.z.dtype).to(self.z.device)
            )  # 0.25 or 1.25: none is lost in a product

    @property
    def state(self):
        return reference.state_dtype(self.z.dtype)

    def bn(self):
        channels = self.z.shape[2 if self.T is None else 1]
        if self.norm is None:
            return None
        return norm(channels, self.state, self.z.device, self.training, **self.norm)

    def sn(self):
        node = NODES[self.node](**self.neuron)
        return None if node is None else node.to(self.z.device, self.state)


@dataclass
class Result:
    """Outputs, gradients by name, and for the reference the sums of |terms| of those gradients that are sums."""

    out: Tensor
    v: Tensor | None
    grads: dict[str, Tensor]
    bn: nn.Module | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


def loss_of(out: Tensor, skip: Tensor | None) -> Tensor:
    """A weighted sum with a different weight for each number; with two readers, the sum over both."""
    total = 0
    for o, seed in ((out, 1), (skip, 2)):
        if o is not None:
            total = total + (o * current(o.shape, o.dtype, o.device, mean=0.1, seed=seed)).sum(dtype=torch.float64)
    return total


def _gradients(named):
    return {name: t.grad for name, t in named.items() if t is not None and t.grad is not None}


def by_op(case: Case, fused: bool = True) -> Result:
    """Runs the op; with ``fused=False`` the modules one after the other."""
    z, shortcut = (None if t is None else t.detach().requires_grad_() for t in (case.z, case.shortcut))
    bn, sn = case.bn(), case.sn()
    connect_f, before = CONNECTIONS[case.connection]
    options = {
        "connect_f": connect_f,
        "connect_before": before,
        "T": case.T,
        "return_skip": case.return_skip,
        "fused": fused,
    }
    output = bn_neuron(z, bn, sn, shortcut, **options)
    loss_of(output.out, output.skip).backward()
    named = {"z": z, "shortcut": shortcut, "weight": getattr(bn, "weight", None), "bias": getattr(bn, "bias", None)}
    named["w"] = getattr(sn, "w", None)
    return Result(output.out.detach(), getattr(sn, "v", None), _gradients(named), bn)


def _normalised(case: Case, z: Tensor, bn: nn.Module, weight, bias) -> tuple[Tensor, Tensor, Tensor]:
    """y, xhat, the largest |weight| / sqrt(var + eps). Statistics have the op's bits, the reference's gradients."""
    statistics = [None if s is None else s.cpu() for s in (bn.running_mean, bn.running_var)]
    if case.training or statistics[0] is None:
        bits = torch.ops.sewsnn.bn_statistics(case.z, case.T or 0, False).cpu()
        statistics = [b + (m - m.detach()) for b, m in zip(bits, reference.moments(z), strict=True)]
    y = reference.normalise(z, *statistics, weight, bias, bn.eps)
    with torch.no_grad():
        xhat = reference.normalise(z, *statistics, None, None, bn.eps)
        scale = (1 if weight is None else weight.abs()) / (statistics[1] + bn.eps).sqrt()
    return y, xhat, scale.max()


def by_reference(case: Case) -> Result:
    """Runs the same on the CPU with sewsnn.ops.reference."""
    z, shortcut = (None if t is None else t.detach().cpu().requires_grad_() for t in (case.z, case.shortcut))
    bn, sn = case.bn(), case.sn()
    weight, bias = (
        None if p is None else p.detach().cpu().requires_grad_() for p in (bn and bn.weight, bn and bn.bias)
    )
    connect_f, before = CONNECTIONS[case.connection]
    y, scale = z.to(case.state), torch.tensor(1.0)
    y = y if case.T is None else y.unsqueeze(0)
    if bn is not None:
        y, xhat, scale = _normalised(case, y, bn, weight, bias)
    y_seq = y.clone() if case.T is None else y.expand(case.T, *case.z.shape).clone()
    y_seq.retain_grad()
    w = getattr(sn, "w", None)
    spec = None if sn is None else sn.spec()
    learnt = None if w is None else w.sigmoid().cpu()
    s = None if shortcut is None else shortcut.to(case.state)
    out, v_seq = reference.bn_neuron(
        y_seq, s, statistics=None, connect_f=connect_f, connect_before=before, neuron=spec, learnt=learnt
    )
    out = out.to(z.dtype)
    loss_of(out, out if case.return_skip else None).backward()
    named = {"z": z, "shortcut": shortcut, "weight": weight, "bias": bias, "w": w}
    terms = {"z": scale * (y_seq.grad.abs().max() if y_seq.numel() else 0)}
    if bn is not None:
        over = [d for d in range(y_seq.dim()) if d != 2]
        terms |= {"bias": y_seq.grad.abs().sum(over), "weight": (y_seq.grad * xhat).abs().sum(over)}
    return Result(out.detach(), None if v_seq is None else v_seq[-1].detach(), _gradients(named), bn, terms)


def compare(case: Case) -> Result:
    """Compares the op with the reference: out and v bit for bit, gradients up to rounding.

    A gradient of a time-step has passed T recurrences of a few operations (4 (T + 4) roundings, as in cases.py), and in
    training two means over n values, which torch adds pairwise in the reference: log2 n more. Those of a channel are
    sums of n terms: their roundings are of the sum of |terms|.
    """
    result, expected = by_op(case), by_reference(case)
    torch.testing.assert_close(result.out.cpu(), expected.out, rtol=0, atol=0, equal_nan=True)
    if expected.v is not None and result.v is not None:
        torch.testing.assert_close(result.v.cpu(), expected.v, rtol=0, atol=0, equal_nan=True)
    assert result.grads.keys() == expected.grads.keys()
    if not all(g.isfinite().all() and (g.numel() == 0 or g.abs().max() < 1e30) for g in expected.grads.values()):
        return result  # a reset that is not detached, over many steps: gradients explode
    T = case.T or len(case.z)
    n = max(2, case.z.numel() * (case.T or 1))
    rounding = 4 * (T + 4 + math.log2(n)) * EPS[case.state]
    for name, grad in expected.grads.items():
        actual = result.grads[name].cpu()
        assert actual.dtype == grad.dtype and actual.shape == grad.shape, name
        if grad.numel() == 0:
            continue
        stored = EPS[grad.dtype] if grad.element_size() == 2 else 0
        sums = expected.terms.get(name, grad.abs().max())
        if name == "w":
            sums = sums + expected.terms["z"] * n  # every term is at most what z gets, times h - v
        error = (actual - grad).abs().to(case.state)
        bound = rounding * sums + (rounding + stored) * grad.abs().to(case.state) + torch.finfo(case.z.dtype).tiny
        assert (error <= bound).all(), f"{name}: error {float(error.max()):.3g}, bound {float(bound.max()):.3g}"
    return result
