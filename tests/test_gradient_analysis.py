"""Gradient norms of the blocks and equation S4 (supplement, A.4): ``sewsnn analyze gradients``."""

import csv

import pytest
import torch
from cases import EPS
from runs import CONFIG
from small_run import error_of, names
from torch import nn
from torch.nn.functional import cross_entropy

from sewsnn import models, neuron
from sewsnn.analysis.gradients import gradient_norms, predicted_norms
from sewsnn.cli import main
from sewsnn.experiments import gradients
from sewsnn.models.network import Network
from sewsnn.models.registry import _MODELS
from sewsnn.surrogate import ATan

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [(1.0, 2.0), (0.5, 2.0), (1.0, 3.0)]
F64 = EPS[torch.float64]
SMALL = ["--data.batch_size", "8", "--analysis.seeds", "1", "--analysis.depths", "[18]", "--threads", "1"]
FIGURES = {"gradients-zero-init", "gradients-default"}


def network(residual="spiking", T=1, setting=(1.0, 2.0), blocks=(6,), widths=(8,), zero_init=True, **more):
    v_threshold, alpha = setting
    settings = {"v_threshold": v_threshold, "surrogate_function": ATan(alpha), "store_v": False}
    settings |= {key: more.pop(key) for key in ("detach_reset", "v_reset") if key in more}
    torch.manual_seed(0)
    return models.create_model(
        "sew_resnet",
        blocks=blocks,
        widths=widths,
        residual=residual,
        num_classes=5,
        in_channels=1,
        stem="small",
        T=T,
        zero_init_residual=zero_init,
        neuron=lambda: neuron.IFNode(**settings),
        **more,
    ).double()


def batch(N=4, size=6):
    torch.manual_seed(1)
    return torch.rand(N, 1, size, size, dtype=torch.float64), torch.arange(N) % 5


def rounding(k):
    """A product of k surrogates with up to eight roundings each, and as many sums over time."""
    return 16 * k * F64


# ---- the measurement


@pytest.mark.parametrize("residual", ["sew", "spiking", "plain"])
@pytest.mark.parametrize("zero_init", [True, False])
def test_norms_are_those_of_plain_autograd(residual, zero_init):
    """The modules one after the other, hooks that keep S and O, and ``loss.backward()``."""
    settings = {"residual": residual, "T": 3, "blocks": (2, 1), "widths": (6, 8), "zero_init": zero_init}
    x, y = batch()
    found = gradient_norms(network(**settings), x, y)
    plain = network(**settings, fused=False).train()
    kept = {}

    def keep(name):
        def hook(module, args, o_seq):
            args[0].retain_grad(), o_seq.retain_grad()
            kept[name] = (args[0], o_seq)

        return hook

    blocks = [(name, m) for name, m in plain.named_modules() if isinstance(m, models.BasicBlock)]
    for name, block in blocks:
        block.register_forward_hook(keep(name))
    cross_entropy(plain(x), y).backward()
    assert [one.name for one in found] == [name for name, _ in blocks] == ["layer1.0", "layer1.1", "layer2.0"]
    for one in found:
        s_seq, o_seq = kept[one.name]
        # 8 convolutions, each a sum of at most 9 * 8 products, and sums of T N H W values in batch norm
        rel = 8 * (9 * 8 + 3 * 4 * 36) * F64
        assert one.norm == pytest.approx(s_seq.grad.pow(2).sum().sqrt().item(), rel=rel) and one.norm > 0
        assert one.norm_output == pytest.approx(o_seq.grad.pow(2).sum().sqrt().item(), rel=rel)
        assert one.rate == pytest.approx(s_seq.mean().item()) and one.elements == s_seq.numel()
        assert one.residual == residual and one.downsample == (one.name == "layer2.0" and residual != "plain")
    assert [one.follows for one in found] == [False, True, True]


def test_the_model_does_not_change():
    model = network("sew", T=3, blocks=(1, 1), widths=(6, 8), zero_init=False)
    x, y = batch()
    cross_entropy(model(x), y).backward()
    model.eval()
    model.layer1[0].bn1.train()
    model.layer2[0].requires_grad_(False)
    node = model.layer1[0].sn1
    node.v = torch.full((2,), 0.25)

    def state():
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        modules = list(model.modules())
        rest = [[m.training for m in modules], [len(m._forward_hooks) for m in modules], node.v.tolist()]
        rest += [[len(m._forward_pre_hooks) for m in modules], [p.requires_grad for p in model.parameters()]]
        return [t if t is None else t.clone() for t in tensors], rest, [id(b) for b in model.buffers()]

    before = state()
    with torch.no_grad():  # it enables gradients itself
        found = gradient_norms(model, x, y)
    after = state()
    assert before[1:] == after[1:]
    assert all(a is b if a is None else torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    model.requires_grad_(False)
    assert [one.norm for one in gradient_norms(model, x, y)] == [one.norm for one in found]
    model.fc.weight.data = model.fc.weight.data[:, :1]
    with pytest.raises(RuntimeError):
        gradient_norms(model, x, y)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()) and not model.training


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no blocks"):
        gradient_norms(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


# ---- the prediction


@pytest.mark.parametrize("T, detach_reset", [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_equations_s1_to_s3_element_by_element(setting, T, detach_reset):
    """Exact for any dL/dO, for T > 1 with the path through the membrane potential."""
    model = network(T=T, setting=setting, detach_reset=detach_reset, blocks=(4, 3), widths=(6, 8))
    found = gradient_norms(model, *batch())
    assert [one.factors is None for one in found] == [False] * 4 + [True, False, False]  # the downsample block
    assert 0.02 < found[0].rate < 0.9
    for one in found:
        if one.factors:
            # with detach_reset=False terms of both signs cancel by less than a factor of 1000 here
            assert one.element_wise == pytest.approx(one.norm, rel=rounding(4) * (1 if detach_reset else 1000))


@pytest.mark.parametrize("setting", SETTINGS)
def test_equation_s4_is_exact_where_the_gradient_does_not_depend_on_spikes(setting):
    """One image, and a classifier with equal weights for all features: dL/dO is one number. For T = 1 equation S4 then
    is exact; with another classifier, or with T > 1, it is not."""
    x, y = batch(N=1)

    def measured(T, equal):
        model = network(T=T, setting=setting)
        if equal:
            model.fc.weight.data = model.fc.weight.data[:, :1].expand(-1, 8).clone()
        found = gradient_norms(model, x, y)
        assert all(one.factors for one in found) and 0.02 < found[0].rate < 0.9
        return [predicted / one.norm for one, predicted in zip(found, predicted_norms(found), strict=True)]

    # sums of 8 * 36 values in the norms, and the mean of 36 equal values in the pooling
    assert measured(1, True) == pytest.approx([1.0] * 6, rel=rounding(6) + 8 * 36 * F64)
    a_is_b = setting == (0.5, 2.0)  # then nothing depends on the spikes
    assert (measured(1, False) == pytest.approx([1.0] * 6, rel=1e-9)) == a_is_b
    assert max(measured(4, True)) < 1  # the path through the membrane potential adds to the norm


def test_the_prediction_starts_again_after_a_pooling_and_a_downsample():
    node = lambda: neuron.IFNode(v_threshold=0.5, store_v=False)  # noqa: E731
    torch.manual_seed(0)
    net = models.create_model("spiking_cifar10_net", T=1, neuron=node, zero_init_residual=True, widths=[4, 4, 4, 4, 4])
    found = gradient_norms(net.double(), torch.rand(1, 3, 32, 32, dtype=torch.float64), torch.tensor([3]))
    predicted = predicted_norms(found)
    assert [one.follows for one in found] == [False, True] * 5
    for i in range(0, 10, 2):
        a, b = found[i].factors
        assert a == b == pytest.approx(0.2884, abs=1e-4)
        assert predicted[i : i + 2] == pytest.approx([found[i + 1].norm_output * a**2, found[i + 1].norm_output * a])
    assert found[0].norm_output == found[1].norm
    # max pooling without overlap hands each gradient to one element
    assert found[1].norm_output == pytest.approx(found[2].norm) and found[1].elements == 4 * found[2].elements


@pytest.mark.parametrize("connect_f", ["ADD", "AND", "IAND"])
def test_sew_identity_blocks_keep_the_norm(connect_f):
    found = gradient_norms(network("sew", T=4, connect_f=connect_f), *batch())
    assert all(one.factors == (1.0, 1.0) and one.norm == found[-1].norm_output for one in found)
    assert predicted_norms(found) == [found[-1].norm_output] * 6 == [one.element_wise for one in found]


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_init": False},
        {"zero_init": False, "residual": "sew"},
        {"residual": "plain"},
        {"v_reset": None},  # the potential that is left is not 0
    ],
)
def test_nothing_is_predicted_for_other_blocks(settings):
    found = gradient_norms(network(**{"T": 2, "setting": (0.5, 2.0)} | settings), *batch())
    assert predicted_norms(found) == [None] * 6 == [one.element_wise for one in found]


# ---- the command


def analyze(source, output, *words):
    return ["analyze", "gradients", source, "--output", output, "--threads", "1", *words]


def test_command(tmp_path, capsys):
    assert main([str(w) for w in analyze(CONFIG, tmp_path / "a" / "b", *SMALL[:-2])]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "a" / "b"
    assert out == f"wrote {folder / 'gradients.md'}\n"
    files = {f"{name}.{form}" for name in FIGURES for form in ("png", "svg")}
    assert set(names(folder)) == files | {"gradients.md", "gradients-blocks.csv"}
    with open(folder / "gradients-blocks.csv") as file:
        rows = list(csv.DictReader(file))
    text = (folder / "gradients.md").read_text()
    assert len(rows) == 3 * 2 * 2 * 8 and all(f"- `{name}`: " in text for name in rows[0])
    for row in rows:
        assert (row["predicted"] != "") == (row["zero_init"] == "1" and row["downsample"] == "0")
        assert float(row["norm"]) > 0 and row["seed"] == "2020" and row["depth"] == "18"
    rated = {(r["v_threshold"], r["alpha"], r["zero_init"], r["residual"], r["block"]) for r in rows}
    assert len(rated) == len(rows) and ("0.5", "2.0", "0", "sew", "8") in rated
    assert {r["model"] for r in rows} == {"spiking_resnet18", "sew_resnet18"}
    assert "9 of the main paper). Holds" in text and "nan" not in text and "Equations S1 to S3 hold" in text


def test_several_depths_and_seeds_and_batches(tmp_path):
    """The norm over two batches is the root mean square; one figure more shows the depths."""
    words = ["--data.batch_size", "4", "--analysis.depths", "[18, 34]", "--analysis.settings", "[[0.5, 2.0]]"]
    for batches, seeds in ((2, 1), (1, 2)):
        folder = tmp_path / str(batches)
        more = ["--analysis.batches", str(batches), "--analysis.seeds", str(seeds), "--T", "1"]
        assert main([str(w) for w in analyze(CONFIG, folder, *words, *more)]) == 0
        assert "gradients-depths.png" in names(folder)
        with open(folder / "gradients-blocks.csv") as file:
            assert len(list(csv.DictReader(file))) == seeds * 2 * 2 * (8 + 16)
    text = (tmp_path / "1" / "gradients.md").read_text()
    assert "2 seeds (2020 to 2021)" in text and "| V_th = 0.5, alpha = 2 | Spiking, zero init |" in text
    assert "for T = 1. Holds" in text  # a = b: nothing depends on the spikes, and there is no later time-step


def test_weights_are_measured_alone_with_their_neurons(tmp_path):
    words = ["--blocks", "[2, 1]", "--widths", "[6, 8]", "--v_threshold", "0.75", "--data.batch_size", "8"]
    torch.manual_seed(3)
    net = models.create_model("sew_resnet", blocks=[2, 1], widths=[6, 8], num_classes=10, in_channels=1, stem="small")
    torch.save(net.state_dict(), tmp_path / "w.pt")
    folder = tmp_path / "out"
    words += ["--weights", tmp_path / "w.pt", "--analysis.seeds", "2"]
    assert main([str(w) for w in analyze(CONFIG, folder, *words)]) == 0
    with open(folder / "gradients-blocks.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["seed"], r["name"], r["v_threshold"], r["alpha"], r["zero_init"]) for r in rows] == [
        (seed, name, "0.75", "2.0", "") for seed in ("2020", "2021") for name in ("layer1.0", "layer1.1", "layer2.0")
    ]
    assert names(folder) == ["gradients-blocks.csv", "gradients-blocks.png", "gradients-blocks.svg", "gradients.md"]
    assert "this network only" in (folder / "gradients.md").read_text()


def test_norms_that_an_axis_cannot_show_are_named(tmp_path, monkeypatch):
    def some_vanish(model, x, y):
        found = gradient_norms(model, x, y)
        of_spiking = {"layer1.0": 0.0, "layer4.1": float("inf")}
        return [
            one._replace(norm=of_spiking.get(one.name, one.norm)) if one.residual == "spiking" else one for one in found
        ]

    monkeypatch.setattr(gradients, "gradient_norms", some_vanish)
    assert main([str(w) for w in analyze(CONFIG, tmp_path / "out", *SMALL[:-2])]) == 0
    text = (tmp_path / "out" / "gradients.md").read_text()
    assert "12 norms are 0 or not finite" in text and "spiking_resnet18, V_th = 1, alpha = 2, zero init" in text
    assert "Undecided" in text


class NoBlocks(Network):
    def __init__(self, num_classes, in_channels, T, **_):
        super().__init__(T, in_channels, num_classes, False)
        self.fc = nn.Linear(in_channels, num_classes)

    def features(self, x):
        return x.mean((-2, -1)).expand(self.T, -1, -1)


def test_wrong_input_is_one_line_and_leaves_no_files(tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.pt"
    torch.save(models.create_model("sew_resnet18", num_classes=10, in_channels=1).state_dict(), other)
    monkeypatch.setitem(_MODELS, "no_blocks", lambda **settings: NoBlocks(**settings))
    cases = {
        ("--analysis.depths", "[18, 20]"): "analysis.depths[1] must be one of 18, 34, 50, 101, 152, got 20",
        ("--weights", other): "other.pt",
        ("--model.name", "no_blocks", "--blocks", "[]", "--widths", "[]"): "model.name: no_blocks has no residual",
        ("--analysis.settings", "[[1.0, 2.0, 3.0]]"): "analysis.settings[0]",
        ("--weights", tmp_path / "none.pt"): "none.pt",
    }
    for words, expected in cases.items():
        assert expected in error_of(analyze(CONFIG, tmp_path / "out" / "deeper", *words), capsys)
        assert not (tmp_path / "out").exists()
    too_small = ["--model.name", "sew_cifar10_net", "--blocks", "[]", "--widths", "[]", "--stem", "null"]
    assert main([str(w) for w in analyze(CONFIG, tmp_path / "out", *too_small)]) == 1
    err = capsys.readouterr().err
    assert (
        "sewsnn: error: spiking_cifar10_net cannot run on the data digits: x must be at least 32 x 32" in err
        and "Trace" not in err
    )
    assert "none.yaml" in error_of(analyze(tmp_path / "none.yaml", tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()
