"""The paper's equations of its blocks: identities and gradients (main paper, section 3.2; supplement, A.4).

Spiking blocks that are identities, O = SN(F(S) + S) with F = 0, multiply the gradient by Theta'(S - V_th), one after
the other; SEW blocks hand it on as it is. Blocks become identities as they do in training: the last BN's weight is 0.
"""

import math

import pytest
import torch
from cases import EPS, current
from torch import nn

from sewsnn import models, neuron
from sewsnn.models.blocks import Style
from sewsnn.models.network import zero_init
from sewsnn.surrogate import ATan, UnitATan

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = [models.BasicBlock, models.Bottleneck]
CHANNELS = 8


def blocks_in_a_row(k=1, make=models.BasicBlock, node=neuron.IFNode, identities=True, **style):
    """k blocks of equal width in float64, in training mode."""
    torch.manual_seed(0)
    style = Style(**{"neuron": node, **style})
    row = nn.Sequential(*(make(CHANNELS, CHANNELS // make.expansion, 1, style) for _ in range(k)))
    if identities:
        zero_init(row)
    return row.double()


def spikes(T=1, N=3, seed=0, device="cpu"):
    """Random spikes ``[T, N, C, H, W]``; about half of them are 1."""
    return (current((T, N, CHANNELS, 5, 4), torch.float64, device, seed=seed) > 0.8).double()


def gradient_of_input(row, s_seq, grad):
    """Returns (O, dL/dS) for dL/dO = ``grad``."""
    s_seq = s_seq.clone().requires_grad_()
    out = row(s_seq)
    out.backward(grad)
    return out.detach(), s_seq.grad


# ---- the blocks


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("connect_f, g", [("ADD", "A + S"), ("AND", "A S"), ("IAND", "S (1 - A)")])
@pytest.mark.parametrize("make", BLOCKS)
def test_sew_block(make, connect_f, g, downsample, device):
    """O = g(A, S), Table 1: A = SN(F(S)) by the plain modules one after the other, S the shortcut. IAND: A inhibits S,
    and not S A, in both blocks."""
    torch.manual_seed(0)
    in_channels = 6 if downsample else CHANNELS
    style = Style(connect_f=connect_f, neuron=neuron.IFNode)
    block = make(in_channels, CHANNELS // make.expansion, 2 if downsample else 1, style).double().to(device)
    x = spikes(T=3, device=device)[:, :, :in_channels]
    a = s = x.flatten(0, 1)

    def fire(sn, y):
        return sn(y.unflatten(0, x.shape[:2])).flatten(0, 1)

    for i in range(1, block.convs + 1):
        a = fire(getattr(block, f"sn{i}"), getattr(block, f"bn{i}")(getattr(block, f"conv{i}")(a)))
    if downsample:
        s = fire(block.downsample_sn, block.downsample(s))
    expected = {"A + S": a + s, "A S": a * s, "S (1 - A)": s * (1 - a)}[g]
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} == set(zip(a.flatten().tolist(), s.flatten().tolist(), strict=True))
    assert torch.equal(block(x).flatten(0, 1), expected)


@pytest.mark.parametrize("residual, connect_f", [("sew", "ADD"), ("sew", "AND"), ("sew", "IAND"), ("spiking", "ADD")])
@pytest.mark.parametrize("make", BLOCKS)
def test_zero_init_makes_a_row_of_blocks_an_identity(make, residual, connect_f, device):
    """16 blocks are an identity over all time-steps; without zero-init they are not."""
    s_seq = spikes(T=4, device=device)
    for identities in (True, False):
        row = blocks_in_a_row(16, make, identities=identities, residual=residual, connect_f=connect_f).to(device)
        assert torch.equal(row(s_seq), s_seq) == identities


@pytest.mark.parametrize(
    "node, identity",
    [
        (lambda: neuron.IFNode(v_threshold=1.0), True),
        (lambda: neuron.IFNode(v_threshold=0.5), True),
        (lambda: neuron.IFNode(v_threshold=1e-3), True),
        (lambda: neuron.IFNode(v_threshold=1.0 + 2**-23), False),  # an input of 1 must reach it at once
        (lambda: neuron.IFNode(v_threshold=0.0), False),  # silence fires
        (lambda: neuron.IFNode(v_threshold=0.5, v_reset=None), False),  # 1 - V_th is left, and fires once more
        (lambda: neuron.IFNode(v_threshold=1.0, v_reset=None), True),  # nothing is left
        (lambda: neuron.LIFNode(tau=2.0), False),  # 1 / tau is all that an input charges
        (lambda: neuron.LIFNode(tau=2.0, v_threshold=0.5), True),
        (lambda: neuron.LIFNode(tau=2.0, decay_input=False), True),
        (neuron.ParametricLIFNode, False),  # tau = 2: why 7B-Net of Spiking blocks is no identity
    ],
)
def test_when_a_neuron_is_an_identity(node, identity, device):
    """SN(S) = S for every S of 0 and 1 in 6 time-steps. IF with hard reset does this if and only if 0 < V_th <= 1."""
    steps = torch.arange(64, device=device)
    s_seq = torch.stack([(steps >> t) & 1 for t in range(6)]).float()
    assert torch.equal(node().to(device)(s_seq), s_seq) == identity


# ---- gradients

# Settings of the paper (main paper, section 3.2; A.5), and Theta'(1 - V_th) and Theta'(0 - V_th), written out.
THETAS = {
    "V_th 1, alpha 2": (1.0, ATan(2.0), 1.0, 1 / (1 + math.pi**2)),
    "V_th 0.5, alpha 2": (0.5, ATan(2.0), 1 / (1 + math.pi**2 / 4), 1 / (1 + math.pi**2 / 4)),
    "V_th 1, alpha 3": (1.0, ATan(3.0), 1.5, 1.5 / (1 + (1.5 * math.pi) ** 2)),
    "0/1 gradients": (0.5, UnitATan(0.5), 1.0, 1.0),
    "V_th 0.25, 1 at silence": (0.25, UnitATan(0.25), (1 + math.pi**2 / 16) / (1 + (0.75 * math.pi) ** 2), 1.0),
}
KS = [1, 4, 16]


def spiking_row(k, setting, **style):
    v_threshold, surrogate, *_ = THETAS[setting]
    last = lambda: neuron.IFNode(v_threshold=v_threshold, surrogate_function=surrogate)  # noqa: E731
    return blocks_in_a_row(k, residual="spiking", last_neuron=last, **style)


def theta(setting, s_seq):
    """Theta'(S - V_th) of each spike."""
    *_, at_1, at_0 = THETAS[setting]
    return s_seq * at_1 + (1 - s_seq) * at_0


def rounding(k):
    """The error of a product of k surrogates with up to eight roundings each: pi, products, square, sum, quotient."""
    return {"rtol": 8 * k * EPS[torch.float64], "atol": 0}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("setting", THETAS)
@pytest.mark.parametrize("make", BLOCKS)
def test_gradient_through_spiking_blocks(make, setting, k, fused, device):
    """Equations S1 to S3: dL/dS^l = dL/dO^(l+k-1) prod Theta'(S - V_th), element by element."""
    s, grad = spikes(device=device), current((1, 3, CHANNELS, 5, 4), torch.float64, device, seed=1)
    row = spiking_row(k, setting, make=make, fused=fused).to(device)
    out, actual = gradient_of_input(row, s, grad)
    assert torch.equal(out, s)
    torch.testing.assert_close(actual, grad * theta(setting, s) ** k, **rounding(k))


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("setting", THETAS)
def test_gradient_through_spiking_blocks_over_time(setting, k, device):
    """The equations hold at each time-step for what goes through that time-step. A neuron that did not fire also hands
    on its potential, so a later time-step's gradient comes back to it: with v = 0 throughout (an identity leaves none
    behind, with V_th = 0.5 neither),

        dL/dS[t] = dL/dO[t] Theta'(S[t] - V_th) + (1 - S[t]) dL/dS[t + 1]      in each block, from t = T - 1 on
    """
    s_seq = spikes(T=4, device=device)
    grad = current(s_seq.shape, torch.float64, device, seed=1)
    out, actual = gradient_of_input(spiking_row(k, setting).to(device), s_seq, grad)
    assert torch.equal(out, s_seq)
    expected, size = grad, grad.abs()
    for _ in range(k):
        expected, size = over_time(setting, s_seq, expected), over_time(setting, s_seq, size)
    # Sums cancel: the error is measured by the sum of what is added up; one more rounding for each term.
    tolerance = (8 + s_seq.shape[0]) * k * EPS[torch.float64]
    assert ((actual - expected).abs() <= tolerance * size).all()
    last = grad[-1] * theta(setting, s_seq[-1]) ** k  # nothing comes back to the last time-step
    torch.testing.assert_close(actual[-1], last, **rounding(k))


def over_time(setting, s_seq, grad):
    """Computes dL/dS of one block from dL/dO."""
    found = [torch.zeros_like(grad[0])]
    for s, g, a in zip(s_seq.flip(0), grad.flip(0), theta(setting, s_seq).flip(0), strict=True):
        found.insert(0, g * a + (1 - s) * found[0])
    return torch.stack(found[:-1])


def norm_of_product(setting, k, count, rate):
    """Equation S4, with the squares that an L2 norm needs (the paper prints the powers without them)."""
    *_, a, b = THETAS[setting]
    return math.sqrt(count * rate * a ** (2 * k) + count * (1 - rate) * b ** (2 * k))


@pytest.mark.parametrize("setting", THETAS)
def test_norm_of_the_gradient(setting, device):
    """Equation S4: for dL/dO = 1 at every neuron, ||dL/dS|| is the norm of the product; and what it tends to."""
    s = spikes(N=8, device=device)
    count, rate = s.numel(), s.mean().item()
    assert 0.3 < rate < 0.7
    norms = []
    for k in (1, 4, 16, 40):
        _, grad = gradient_of_input(spiking_row(k, setting).to(device), s, torch.ones_like(s))
        norms.append(grad.norm().item())
        # the norm adds count squares, the formula two powers
        assert norms[-1] == pytest.approx(norm_of_product(setting, k, count, rate), rel=(16 * k + count) * 2.0**-52)
    limit = {
        "V_th 1, alpha 2": math.sqrt(count * rate),
        "V_th 0.5, alpha 2": 0,
        "V_th 1, alpha 3": math.inf,
        "0/1 gradients": math.sqrt(count),
        "V_th 0.25, 1 at silence": math.sqrt(count * (1 - rate)),
    }[setting]
    if limit == math.inf:
        assert norms == sorted(norms) and norms[-1] > 1e6
    else:
        assert norms[-1] == pytest.approx(limit, abs=1e-9)
    if setting == "V_th 0.5, alpha 2":  # the formula as it is printed is another number: count a^k for the squared norm
        printed = math.sqrt(count * THETAS[setting][2])
        assert norms[0] / printed == pytest.approx(math.sqrt(THETAS[setting][2]))


@pytest.mark.parametrize("connect_f", ["ADD", "AND", "IAND"])
@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("setting", ["V_th 1, alpha 2", "V_th 0.5, alpha 2", "V_th 1, alpha 3"])
def test_gradient_through_sew_blocks_is_unchanged(setting, make, connect_f, device):
    """dO/dS = 1 (ADD), A = 1 (AND), 1 - A = 1 (IAND) in 16 identities, whatever the surrogate, over time: the
    same bits."""
    v_threshold, surrogate, *_ = THETAS[setting]
    node = lambda: neuron.IFNode(v_threshold=v_threshold, surrogate_function=surrogate)  # noqa: E731
    s_seq = spikes(T=4, device=device)
    grad = current(s_seq.shape, torch.float64, device, seed=1)
    row = blocks_in_a_row(16, make, node, connect_f=connect_f).to(device)
    out, actual = gradient_of_input(row, s_seq, grad)
    assert torch.equal(out, s_seq) and torch.equal(actual, grad)


@pytest.mark.parametrize("make", BLOCKS)
def test_gradient_through_a_sew_block_is_that_of_its_branch_more(make, device):
    """ADD: dL/dS = dL/dO + dL/dO dA/dS, the second being what the plain block, the branch alone, gives."""
    s_seq = spikes(T=4, device=device)
    grad = current(s_seq.shape, torch.float64, device, seed=1)
    (_, sew), (_, branch) = (
        gradient_of_input(blocks_in_a_row(1, make, identities=False, residual=r).to(device), s_seq, grad)
        for r in ("sew", "plain")
    )
    assert branch.norm() > 0.1 * grad.norm()
    torch.testing.assert_close(sew, grad + branch, rtol=0, atol=4 * EPS[torch.float64] * float(sew.abs().max()))


# ---- the stem


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sew_resnet", "sew_cifar10_net"])
def test_the_stem_sees_an_image_once(name, fused, device):
    """Its convolution and BN are given N images, not T N, and the running variance is that of N H W values. All
    convolutions after it see T N."""
    torch.manual_seed(0)
    structure = (
        {"blocks": [1], "widths": [8], "stem": "small"} if name == "sew_resnet" else {"widths": [8], "blocks": [1]}
    )
    net = models.create_model(name, T=4, num_classes=5, fused=fused, **structure).double().to(device)
    stem, bn = (net.conv1, net.bn1) if name == "sew_resnet" else (net.layer1.conv, net.layer1.bn)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, z: seen.append((m, len(inputs[0]))))
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, device=device)
    net(x)
    assert seen[0] == (stem, 2) and len(seen) == 3 and all(n == 8 for _, n in seen[1:])
    z = stem(x)
    expected = nn.BatchNorm2d(8).double().to(device)
    expected(z)
    near = {"rtol": 32 * 8 * EPS[torch.float64], "atol": 0}  # sums of 32 values
    torch.testing.assert_close(bn.running_var, expected.running_var, **near)
    torch.testing.assert_close(bn.running_mean, expected.running_mean, rtol=0, atol=32 * EPS[torch.float64])
    n = z.numel() // 8  # T N values would be another variance
    assert not torch.allclose(
        0.9 + 0.1 * z.var((0, 2, 3), correction=0) * 4 * n / (4 * n - 1), bn.running_var, rtol=1e-6
    )
