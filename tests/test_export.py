"""``sewsnn export``: a file computes the same as the network, also without sewsnn, or is not written."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from sewsnn import functional, layers, models, neuron, surrogate
from sewsnn.cli import main
from sewsnn.errors import UserError
from sewsnn.export import agreement, export_model
from sewsnn.export.source import open_source
from sewsnn.train.config import from_dict

pytestmark = pytest.mark.usefixtures("one_thread")

NO_ONNX = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
FORMATS = ["torch", pytest.param("onnx", marks=pytest.mark.skipif(bool(NO_ONNX), reason=f"without {NO_ONNX}"))]
ENDINGS = {"torch": "pt2", "onnx": "onnx"}


@torch.no_grad()
def alive(model, x):
    """A network with the statistics of x, so that all layers fire, and with changed initial values."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, 0, 1)
            module.momentum = 1.0
        if isinstance(getattr(module, "w", None), nn.Parameter):
            nn.init.uniform_(module.w, -1, 1)
    model.train()(x)
    return model.eval()


def images(n=2, size=16, channels=3):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(n))


def events(n=2, T=2, size=8):
    return torch.poisson(torch.full((T, n, 2, size, size), 0.7), torch.Generator().manual_seed(n))


def resnet(**settings):
    settings = {"blocks": [1, 1], "widths": [8, 16], "num_classes": 3, "T": 2} | settings
    torch.manual_seed(0)
    return alive(models.create_model("sew_resnet", **settings), images())


def event_net(**settings):
    settings = {"widths": (8, 8, 16), "blocks": (1, 1, 1), "stem_kernel": 1, "num_classes": 5, "T": 2} | settings
    torch.manual_seed(0)
    return alive(models.create_model("sew_7b_net", **settings), events())


NETWORKS = {
    "ADD, IF": (resnet, images, {}),
    "IAND, PLIF, bottlenecks": (
        resnet,
        images,
        {"connect_f": "IAND", "neuron": neuron.ParametricLIFNode, "bottleneck": True},
    ),
    "AND, LIF soft reset, packed": (
        resnet,
        images,
        {"connect_f": "AND", "neuron": lambda: neuron.LIFNode(3.0, v_reset=None), "pack_spikes": True, "stem": "small"},
    ),
    "spiking, A.5": (
        resnet,
        images,
        {
            "residual": "spiking",
            "last_neuron": lambda: neuron.IFNode(v_threshold=0.5, surrogate_function=surrogate.UnitATan()),
        },
    ),
    "T = 1, no decay": (resnet, images, {"T": 1, "neuron": lambda: neuron.LIFNode(2.0, False, store_v_seq=True)}),
    "7B-Net": (event_net, events, {}),
    "7B-Net, still": (lambda **kw: event_net(in_channels=2, **kw), lambda n=2: images(n, 8, 2), {}),
}


def run_file(path, format, x):
    if format == "torch":
        with torch.no_grad():
            return torch.export.load(path).module()(x)
    if importlib.util.find_spec("onnxruntime") is None:
        from onnx.reference import ReferenceEvaluator as Session
    else:
        from onnxruntime import InferenceSession as Session
    return torch.from_numpy(Session(str(path)).run(None, {"x": x.numpy()})[0])


# Writing ONNX takes long, so these networks together cover every operation.
CASES = [(name, FORMATS[0]) for name in NETWORKS]
CASES += [pytest.param(name, "onnx", marks=FORMATS[1].marks) for name in ("AND, LIF soft reset, packed", "7B-Net")]


@pytest.mark.parametrize("name, format", CASES)
def test_files_compute_what_the_network_does(name, format, tmp_path):
    """The file also takes other numbers of samples than in the trace."""
    make, example, settings = NETWORKS[name]
    model, path = make(**settings), tmp_path / f"net.{ENDINGS[format]}"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = export_model(model, example(), path)
    found = report.agreement
    assert (report.format, report.bytes, found.flipped) == (format, path.stat().st_size, 0), str(report)
    assert found.layers == len(agreement.nodes_of(model)) and found.fired > 0.05 * found.spikes
    assert "batch" in report.input_shape and "0 of " in str(report) and os.listdir(tmp_path) == [path.name]
    for n in (1, 4):
        x = example(n)
        with torch.no_grad():
            torch.testing.assert_close(run_file(path, format, x), model(x), rtol=0, atol=1e-5)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(node._forward_hooks for node in agreement.nodes_of(model))


ALONE = """
import sys, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("sewsnn"), name
sys.meta_path.insert(0, Blocked())
x, expected = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(x)
assert (found - expected).abs().max() < 1e-6
assert not any(name.startswith("sewsnn") for name in sys.modules)
"""


def run_alone(path, x, expected, code=ALONE):
    torch.save((x, expected), path.with_suffix(".check"))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", code, str(path), str(path.with_suffix(".check"))]
    return subprocess.run(words, env=env, capture_output=True, text=True, cwd=path.parent)


@torch.no_grad()
def test_without_sewsnn(tmp_path):
    """A process that cannot import sewsnn computes the same logits; the file does not name this machine."""
    model, x = resnet(neuron=neuron.ParametricLIFNode, residual="spiking"), images()
    export_model(model, x, tmp_path / "a.pt2")
    done = run_alone(tmp_path / "a.pt2", x, model(x))
    assert done.returncode == 0, done.stderr
    home = os.path.dirname(os.path.abspath(__file__)).encode()
    program = torch.export.load(tmp_path / "a.pt2")
    assert not any(node.meta.get("stack_trace") for node in program.graph.nodes)
    assert home not in (tmp_path / "a.pt2").read_bytes()


@torch.no_grad()
def test_native(tmp_path):
    """The file keeps one op of sewsnn per layer, and needs sewsnn."""
    model, x = resnet(), images()
    report = export_model(model, x, tmp_path / "a.pt2", native=True, fold=False)
    program = torch.export.load(tmp_path / "a.pt2")
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("sewsnn.bn_neuron_pool_forward.default") == 1
    assert targets.count("sewsnn.bn_neuron_forward.default") == 5
    assert "import sewsnn first" in str(report)
    for n in (1, 3):
        assert torch.equal(program.module()(images(n)), model(images(n)))
    assert "sewsnn" in run_alone(tmp_path / "a.pt2", x, model(x), ALONE.replace("assert not name", "name")).stderr


@pytest.mark.parametrize("format", FORMATS[:1])
def test_fixed_batch(format, tmp_path):
    """Exports a network with a compiled part."""
    model, path = resnet(), tmp_path / "a"
    model.layer1 = torch.compile(model.layer1, backend="eager")
    report = export_model(model, images(1), path, format, dynamic=False)
    assert report.input_shape == (1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(run_file(path, format, images(1)), model(images(1)), rtol=0, atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|guard|size"):
        run_file(path, format, images(2))


@pytest.mark.skipif(bool(NO_ONNX), reason=f"without {NO_ONNX}")
def test_onnx_is_clean(tmp_path):
    """The graph has one named input and output, no spikes, no external weights, and no file names of this machine."""
    import onnx

    export_model(resnet(), images(), tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    sizes = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert [v.name for v in graph.input] == ["x"] and sizes == ["batch", 3, 16, 16]
    assert [v.name for v in graph.output] == ["logits"] and os.listdir(tmp_path) == ["a.onnx"]
    assert {"conv1.weight", "fc.weight"} <= {value.name for value in graph.initializer}
    assert b".py" not in (tmp_path / "a.onnx").read_bytes()


def test_onnx_is_missing(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(UserError, match=r"format 'onnx' needs .*onnxscript: pip install 'sewsnn\[export\]'"):
        export_model(resnet(), images(), tmp_path / "a.onnx")


# ---- what is not written


def test_what_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """A file with other spikes or logits is refused; the old file stays."""
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")
    from sewsnn.export import torch_format

    write = torch_format.write

    def wrong(change):
        def written(network, *rest):
            change(network)
            return write(network, *rest)

        monkeypatch.setattr(torch_format, "write", written)

    wrong(lambda network: setattr(network.layer2[0].sn1, "v_threshold", 1.2))
    with pytest.raises(UserError, match=r"spikes differ; the first layer that differs is neuron layer 4, in a"):
        export_model(resnet(), images(8), path, max_flipped=1e-4)
    wrong(lambda network: network.fc.bias.data.add_(1e-2))
    with pytest.raises(UserError, match=r"logits differ by 0\.01, more than rounding"):
        export_model(resnet(), images(), path)
    wrong(lambda network: network.fc.weight.data.fill_(float("nan")))
    with pytest.raises(UserError, match="logits differ by nan"):
        export_model(resnet(), images(), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.pt2"]


def test_batch_norm_stays_where_folding_would_change_a_spike(tmp_path):
    """A potential equals the threshold exactly, but not with batch norm folded into the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 3), bias=False), nn.BatchNorm2d(1), _Still()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.3, 0.9, 0.7]))  # sums that round
        model[1].running_mean.fill_(0.1)
        model[1].running_var.fill_(3.0)
        x = torch.linspace(0.5, 3.5, 20001).view(1, 1, 1, -1).repeat(2, 1, 1, 1)
        h, folded = model[:2](x), layers.fuse(model)[0](x)
    model[2].node.v_threshold = float(torch.maximum(h, folded)[h != folded][0])
    report = export_model(model, x, tmp_path / "a.pt2")
    assert not report.folded and "batch norm is not folded" in str(report)
    report = export_model(model, x, tmp_path / "a.pt2", fold=True)
    assert report.folded and report.agreement.flipped > 0
    with pytest.raises(UserError, match="is not written"):
        export_model(model, x, tmp_path / "b.pt2", fold=True, max_flipped=0)
    assert export_model(resnet(), images(), tmp_path / "a.pt2", fold=False).folded is False


class _Still(nn.Module):
    """A module with one time-step of a neuron."""

    def __init__(self):
        super().__init__()
        self.node = neuron.IFNode()

    def forward(self, x):
        return self.node(x.unsqueeze(0))[0]


class _Looks(nn.Module):
    """A module with a graph that would depend on the values of tensors."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def in_steps(model):
    functional.set_step_mode(model, "s")
    return model


def not_finite():
    model = resnet()
    model.fc.bias.data[0] = float("nan")
    return model


BAD = {
    "not finite": (not_finite, images, {}, UserError, "the model's own output of the example is not finite"),
    "no module": (lambda: "sew_resnet18", images, {}, TypeError, "model must be a module, got str"),
    "no tensor": (resnet, lambda: [1], {}, TypeError, "example must be a tensor, got list"),
    "empty": (resnet, lambda: images()[:0], {}, ValueError, "example must be a batch that is not empty"),
    "format": (resnet, images, {"format": "tflite"}, ValueError, "format must be one of 'torch', 'onnx', got 'tflite'"),
    "batch_dim": (resnet, images, {"batch_dim": 4}, ValueError, "batch_dim must be a dimension of the example, 0 to 3"),
    "max_flipped": (resnet, images, {"max_flipped": 2}, ValueError, "max_flipped must be a share from 0 to 1, got 2"),
    "channels": (
        resnet,
        lambda: images(channels=5),
        {},
        UserError,
        "cannot run on an example of shape",
    ),
    "state": (lambda: resnet(neuron=lambda: neuron.IFNode(keep_state=True)), images, {}, UserError, "sn1 keeps its st"),
    "steps": (lambda: in_steps(resnet()), images, {}, UserError, "the model is in single-step mode"),
    "looks": (_Looks, images, {}, UserError, "torch.export cannot express _Looks"),
    "native": (lambda: nn.Conv2d(3, 2, 1), images, {"native": True}, UserError, "none of sewsnn's ops to keep"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path):
    model, example, settings, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        export_model(model(), example(), tmp_path / "a.pt2", **settings)
    assert os.listdir(tmp_path) == []


# ---- the command line


def trained(path, **config):
    """A checkpoint of sewsnn train for a network with settings that the weights do not show."""
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "sew_resnet", "blocks": [1], "widths": [8], "stem": "small", "connect_f": "IAND", "T": 2},
    }
    settings["model"]["neuron"] = {"type": "LIF", "tau": 1.5, "v_reset": None}
    config = from_dict(settings | config).to_dict()
    torch.manual_seed(0)
    make = {"blocks": [1], "widths": [8], "num_classes": 4, "in_channels": 1, "T": 2, "stem": "small"}
    model = models.create_model(
        "sew_resnet", connect_f="IAND", neuron=lambda: neuron.LIFNode(1.5, v_reset=None), **make
    )
    alive(model, images(2, 8, 1))
    torch.save({"model": model.state_dict(), "config": config, "epoch": 1}, path)
    return model


def test_a_trained_network(tmp_path, capsys):
    """The checkpoint describes the network completely; the data set is not opened."""
    model, out = trained(tmp_path / "checkpoint.pt"), tmp_path / "net.pt2"
    assert main(["export", str(tmp_path / "checkpoint.pt"), str(out)]) == 0
    text = capsys.readouterr().out
    assert "entries, dialect" in text and "input [batch, 1, 8, 8]" in text and "checked with torch" in text
    x = images(3, 8, 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(x), model(x), rtol=0, atol=1e-5)


def test_sources(tmp_path):
    """Time-steps, sizes and sequences: from the training, from the paper, or from the options."""
    trained(tmp_path / "c.pt")
    source = open_source(tmp_path / "c.pt")
    assert source.example(3).shape == (3, 1, 8, 8) and source.model.T == 2 and not source.sequences
    assert open_source(tmp_path / "c.pt", T=5).model.T == 5
    assert source.example(2, (9, 7), sequences=True).shape == (2, 2, 1, 9, 7)
    trained(tmp_path / "c.pt", data={"name": "imagenet", "image_size": 32})
    assert open_source(tmp_path / "c.pt").size == (32, 32)
    trained(tmp_path / "c.pt", data={"name": "cifar10_dvs"})
    assert open_source(tmp_path / "c.pt").example(1).shape == (2, 1, 1, 128, 128)
    models.save_checkpoint(models.create_model("sew_7b_net", num_classes=4), tmp_path / "c.pt", "authors", "net")
    source = open_source(tmp_path / "c.pt", "sew_7b_net", T=3)
    assert source.example(2).shape == (3, 2, 2, 128, 128) and source.model.fc.out_features == 4
    assert all(type(node) is neuron.ParametricLIFNode for node in agreement.nodes_of(source.model))
    models.save_checkpoint(resnet(), tmp_path / "c.pt")
    with pytest.raises(UserError, match="does not tell the size of its images: give it with --image-size"):
        open_source(tmp_path / "c.pt", "sew_resnet").example(2)


WORDS = {
    "no source": (["none.pt", "a.pt2"], "there is no checkpoint none.pt"),
    "no name": (["w.pt", "a.pt2"], r"w\.pt does not name its model: --model must be one of"),
    "unknown": (["w.pt", "a.pt2", "--model", "sew_resnet19"], "unknown model 'sew_resnet19'"),
    "other": (["w.pt", "a.pt2", "--model", "sew_7b_net"], "does not fit|no entry of"),
    "ending": (["c.pt", "a.bin"], r"format must be given, since a\.bin ends in none of \.pt2, \.onnx"),
    "native onnx": (["c.pt", "a.onnx", "--native"], "native keeps sewsnn's own ops, which format 'onnx' does not have"),
    "itself": (["c.pt", "c.pt", "--format", "torch"], r"c\.pt is the file SOURCE itself"),
    "there": (["c.pt", "w.pt", "--format", "torch"], r"w\.pt exists already: --force replaces it"),
    "folder": (["c.pt", ".", "--format", "torch"], "is a folder: expected the name of a file"),
    "no folder": (["c.pt", "no/a.pt2"], "there is no folder no"),
    "sizes": (["c.pt", "a.pt2", "--image-size", "1", "2", "3"], "--image-size must be height and width"),
    "share": (["c.pt", "a.pt2", "--max-flipped", "nan"], "max_flipped must be a share from 0 to 1, got nan"),
    "container": (["c.pt", "a.pt2", "--container", "model_ema"], "has no tensors by name under 'model_ema'"),
}


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained("c.pt")
    models.save_checkpoint(resnet(), "w.pt")
    words, message = WORDS[case]
    assert main(["export", *words]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(message, err), err
    assert sorted(os.listdir()) == ["c.pt", "w.pt"]
