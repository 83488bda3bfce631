"""Makes the files of this folder with the sewsnn that is imported: see README.md, which names the version.

    PYTHONPATH=CHECKOUT_OF_THAT_VERSION python tests/data/old_version/make.py FOLDER

Almost all numbers are multiples of powers of two, so that no operation rounds and the spikes are the same on every
machine. Where an operation does round, this script checks that no membrane potential is close to its threshold.
"""

import contextlib
import copy
import gzip
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from sewsnn import functional, surrogate
from sewsnn.cli import main
from sewsnn.export import export_model
from sewsnn.export.torch_format import forget_files
from sewsnn.layers import BNNeuron, NeuronConnection, bn_neuron, bn_neuron_pool
from sewsnn.models import create_model
from sewsnn.neuron import BaseNode, IFNode, LIFNode, ParametricLIFNode
from sewsnn.train import checkpoint

EPS = 2.0**-10
DIGITS = Path(__file__).parents[3] / "configs" / "digits.yaml"
RUN = ["--blocks", "[1]", "--widths", "[8]", "--T", "4", "--batch_size", "64", "--device", "cpu", "--threads", "1"]
RUN += [
    "--keep",
    "3",
    "--ema",
    "0.9",
    "--checkpoint_steps",
    "0",
    "--epochs",
    "3",
    "--neuron.type",
    "PLIF",
    "--neuron.v_threshold",
    "0.5",
]


def eighths(*shape, low=-8, high=16, seed=0):
    """Multiples of 1/8, from low / 8 to high / 8."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)) / 8


@torch.no_grad()
def exact(module):
    """Gives batch norms, convolutions and linear layers numbers with which nothing rounds in evaluation."""
    for i, child in enumerate(module.modules()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eps = EPS
            root = torch.tensor([0.5, 1.0])[torch.arange(child.num_features) % 2]
            child.running_var.copy_(root**2 - EPS)
            child.running_mean.copy_(eighths(child.num_features, low=-4, high=4, seed=i))
            child.weight.copy_(4 * eighths(child.num_features, low=1, high=2, seed=i + 1))
            child.bias.copy_(eighths(child.num_features, low=0, high=4, seed=i + 2))
        elif isinstance(child, nn.Conv2d | nn.Linear):
            child.weight.copy_(2 * eighths(*child.weight.shape, low=-1, high=1, seed=i))
            if child.bias is not None:
                child.bias.copy_(eighths(*child.bias.shape, seed=i))
    return module


class Neurons(nn.Module):
    """One call of sewsnn::neuron_forward for each node. ``scale`` is 1 and makes the inputs need a gradient."""

    def __init__(self, train=False, **nodes):
        super().__init__()
        self.nodes = nn.ModuleDict(nodes)
        self.scale = nn.Parameter(torch.ones(len(nodes)), requires_grad=train)

    def forward(self, x):
        found = {name: node(x * self.scale[i]) for i, (name, node) in enumerate(self.nodes.items())}
        if not self.training:
            found["float64"] = self.nodes["lif"](x.double())
            found["bfloat16"] = self.nodes["lif"](x.bfloat16())
        return found


class Potentials(nn.Module):
    """A first potential is given, and a potential is returned."""

    def forward(self, x, v):
        s, v_final = functional.lif_multistep(x, v, tau=2.0)
        s_if, v_seq = functional.if_multistep(x, v, v_reset=None, store_v_seq=True)
        s_plif, v_plif = functional.plif_multistep(x, torch.zeros(()), v, decay_input=False)
        return {"s": s, "v": v_final, "s_if": s_if, "v_seq": v_seq, "s_plif": s_plif, "v_plif": v_plif}


class Connections(nn.Module):
    """One call of sewsnn::bn_neuron_forward for each connection, with, and without, neuron and batch norm."""

    def __init__(self):
        super().__init__()
        self.plain = BNNeuron(8)
        self.add = BNNeuron(8, LIFNode(2.0), connect_f="ADD")
        self.and_ = BNNeuron(8, ParametricLIFNode(2.0), connect_f="AND")
        self.iand = BNNeuron(8, IFNode(surrogate_function=surrogate.Sigmoid(4.0)), connect_f="IAND")
        self.before = BNNeuron(8, IFNode(v_reset=None), connect_f="ADD", connect_before=True)
        self.no_norm = NeuronConnection(LIFNode(3.0, detach_reset=False), "ADD")
        self.norm = nn.BatchNorm2d(8)

    def forward(self, z, shortcut):
        found = {name: getattr(self, name)(z, shortcut) for name in ("add", "and_", "iand", "before", "no_norm")}
        for name in (None, "ADD", "AND", "IAND"):
            s = None if name is None else shortcut
            found[f"no neuron, {name}"] = bn_neuron(z, self.norm, None, s, connect_f=name).out
        found["plain"] = self.plain(z)
        found["still"] = self.plain(z[0], T=4)
        packed = bn_neuron(z, self.plain, self.plain.neuron, pack_spikes=True)
        return found | {"packed": packed.out, "bits": packed.bits}


class Stems(nn.Module):
    """One call of sewsnn::bn_neuron_pool_forward for each neuron."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.nodes = nn.ModuleDict({"IF": IFNode(), "LIF": LIFNode(2.0, v_reset=None), "PLIF": ParametricLIFNode(2.0)})

    def forward(self, z):
        found = {name: bn_neuron_pool(z, self.norm, node, T=4) for name, node in self.nodes.items()}
        return found | {"no_norm": bn_neuron_pool(z, None, self.nodes["IF"], T=3)}


class Layers(nn.Module):
    """A stem and two layers in training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 8))
        self.norm, self.node = nn.BatchNorm2d(4), IFNode(surrogate_function=surrogate.Constant(1.0))
        self.add = BNNeuron(4, ParametricLIFNode(2.0), connect_f="ADD")
        self.iand = BNNeuron(4, LIFNode(2.0, surrogate_function=surrogate.Rectangular(1.0)), connect_f="IAND")
        for norm in (self.norm, self.add, self.iand):
            nn.init.constant_(norm.bias, 1.5 if isinstance(norm, BNNeuron) else 0.25)

    def forward(self, z):
        s = bn_neuron_pool(z * self.scale, self.norm, self.node, T=4)
        return self.iand(self.add(s, s), s)


def inference_nodes():
    return Neurons(
        if_=IFNode(),
        soft=IFNode(v_reset=None),
        shifted=IFNode(v_threshold=0.75, v_reset=-0.25),
        sigmoid=IFNode(surrogate_function=surrogate.Sigmoid(4.0)),
        lif=LIFNode(2.0),
        lif3=LIFNode(3.0),
        lif_soft=LIFNode(4.0, False, v_reset=None),
        plif=ParametricLIFNode(2.0),
        plif3=ParametricLIFNode(3.0, False),
    ).eval()


def training_nodes():
    """A node with each surrogate, and each node with a surrogate."""
    classes = [c for c in vars(surrogate).values() if isinstance(c, type) and issubclass(c, surrogate.Surrogate)]
    nodes = {c.__name__: IFNode(surrogate_function=c()) for c in classes if c.kind is not None}
    return Neurons(
        True,
        **nodes,
        lif=LIFNode(2.0, detach_reset=False, surrogate_function=surrogate.Rectangular(2.0)),
        plif=ParametricLIFNode(2.0),
        plif_soft=ParametricLIFNode(2.0, False, v_reset=None, surrogate_function=surrogate.SoftSign(2.0)),
    ).train()


def network(neuron=IFNode, **settings):
    net = create_model("sew_resnet", blocks=[1, 1], widths=[4, 8], num_classes=4, T=4, neuron=neuron, **settings)
    return exact(net).eval()


def mixed():
    """Makes PLIF nodes with time constants of 2 and of other values."""
    mixed.count += 1
    return ParametricLIFNode([2.0, 3.0, 1.5][mixed.count % 3], v_threshold=0.91)


mixed.count = 0


@torch.no_grad()
def check_thresholds(model, margin, *inputs):
    """Raises AssertionError if a potential is closer than ``margin`` to its threshold or if a layer is silent."""
    spikes = []
    for change in (-margin, margin):
        other, seen = copy.deepcopy(model), []
        for node in other.modules():
            if isinstance(node, BaseNode):
                node.v_threshold += change
                node.register_forward_hook(lambda _, __, s, seen=seen: seen.append(s))
        other(*inputs)
        spikes.append(seen)
    assert spikes[0] and all(torch.equal(a, b) for a, b in zip(*spikes, strict=True)), "close to a threshold"
    assert all(0.02 < s.float().mean() < 0.98 for s in spikes[0]), [float(s.float().mean()) for s in spikes[0]]


def compress(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def save(content, path):
    torch.save(content, path)
    compress(path)


def write(folder, name, module, *inputs):
    """Exports a module and returns inputs and outputs; in training also gradients and the new state."""
    before = copy.deepcopy(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs)
    forget_files(program.graph_module)
    torch.export.save(program, folder / f"{name}.pt2")
    compress(folder / f"{name}.pt2")
    case = {"inputs": list(inputs)}
    if not module.training:
        with torch.no_grad():
            return case | {"outputs": before(*inputs)}
    out = before(*inputs)
    out = out if isinstance(out, dict) else {"out": out}
    case["grad_outputs"] = {key: eighths(*s.shape, seed=len(key)) for key, s in out.items()}
    sum((s * case["grad_outputs"][key]).sum() for key, s in out.items()).backward()
    case["outputs"] = {key: s.detach() for key, s in out.items()}
    case["gradients"] = {key: p.grad for key, p in before.named_parameters()}
    return case | {"buffers": dict(before.named_buffers())}


def programs(folder):
    x, z, image = eighths(4, 2, 16), eighths(4, 2, 8, 3, 3, seed=1), eighths(2, 4, 7, 7, seed=2)
    shortcut = eighths(4, 2, 8, 3, 3, low=0, high=1, seed=3) * 8
    nodes = inference_nodes()
    nodes.nodes["plif3"].v_threshold -= 2.0**-8
    check_thresholds(Neurons(plif3=nodes.nodes["plif3"]).train(), 2.0**-10, x)
    cases = {
        "neurons": write(folder, "neurons", nodes, x),
        "potentials": write(folder, "potentials", Potentials().eval(), x, eighths(2, 16, seed=4)),
        "connections": write(folder, "connections", exact(Connections()).eval(), z, shortcut),
        "stems": write(folder, "stems", exact(Stems()).eval(), image),
        "neurons_training": write(folder, "neurons_training", training_nodes(), eighths(18, 2, 4, high=20, seed=5)),
    }
    layers, image = Layers().train(), torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    check_thresholds(layers, 1e-5, image)
    cases["layers_training"] = write(folder, "layers_training", layers, image)
    x = eighths(2, 3, 16, 16, seed=7)
    for name, settings in {"sew_add": {}, "spiking_lif": {"neuron": LIFNode, "residual": "spiking"}}.items():
        model = network(**settings)
        for node in model.modules():
            if isinstance(node, BaseNode):
                node.v_threshold -= 2.0**-11  # every potential is a multiple of 2**-10
        check_thresholds(model, 2.0**-12, x)
        export_model(model, x, folder / f"{name}.pt2", native=True, fold=False)
        compress(folder / f"{name}.pt2")
        with torch.no_grad():
            cases[name] = {"inputs": [x], "outputs": model(x)}
    save(cases, folder / "programs.pt")


def weights(folder):
    settings = {"blocks": [1, 1], "widths": [4, 8], "num_classes": 4, "T": 4, "connect_f": "IAND"}
    model = network(mixed, connect_f="IAND")
    for seed in range(100):
        x = eighths(2, 3, 16, 16, seed=seed)
        try:
            check_thresholds(model, 5e-5, x)
            break
        except AssertionError as error:
            reason = error
    else:
        raise reason
    with torch.no_grad():
        content = {"settings": settings, "eps": EPS, "state_dict": model.state_dict(), "x": x, "logits": model(x)}
    save(content, folder / "plif_weights.pt")


def run(folder):
    """A run of three epochs: its checkpoint after the first one, and its weights at the end."""
    (folder / "run").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as path, contextlib.chdir(path):
        assert main(["train", str(DIGITS), "--output", "run", *RUN]) == 0
        shutil.copy("run/config.yaml", folder / "run")
        shutil.copy("run/checkpoint-0001.pt", folder / "run" / "checkpoint.pt")
        compress(folder / "run" / "checkpoint.pt")
        end = checkpoint.load(Path("run/checkpoint.pt"))
    save({part: end[part] for part in ("model", "average")}, folder / "run" / "end.pt")


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    programs(target)
    weights(target)
    run(target)
