"""Checkpoints of every dialect: which files load, that they compute the same, and which are refused."""

import argparse
import os

import pytest
import torch
from foreign_nets import CONTAINERS, IF, PLIF, ForeignEventNet, ForeignResNet
from torch import nn

from sewsnn import models, neuron
from sewsnn.errors import CheckpointError
from sewsnn.models.dialects import dialects
from sewsnn.models.sew_resnet import FREE_SIZE
from sewsnn.train import checkpoint

NEURONS = {"IF": (neuron.IFNode, IF), "PLIF": (neuron.ParametricLIFNode, PLIF)}


@torch.no_grad()
def scrambled(model, x=None):
    """Gives every entry a new value; with x the norms get its statistics, so that all layers fire."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for bn in norms:
        nn.init.uniform_(bn.weight, 1, 2)
        nn.init.uniform_(bn.bias, 0, 1.2)
        nn.init.uniform_(bn.running_mean, -0.3, 0.3)
        nn.init.uniform_(bn.running_var, 0.3, 1.5)
        bn.momentum = 1.0
    for module in model.modules():
        if isinstance(getattr(module, "w", None), nn.Parameter):
            nn.init.uniform_(module.w, -1, 1)
    if x is not None:
        model.train()(x)
    for bn in norms:
        bn.num_batches_tracked.fill_(7)
    return model.eval()


def resnet(residual="sew", bottleneck=False, make=neuron.IFNode, **settings):
    block = models.Bottleneck if bottleneck else models.BasicBlock
    settings = {"num_classes": 5, "T": 3, "fused": False} | settings
    return models.SEWResNet(block, [2, 2], [4, 8], neuron=make, residual=residual, **settings).eval()


def event_net(residual="sew", kernel=1, make=neuron.ParametricLIFNode, **settings):
    settings = {"num_classes": 5, "in_channels": 2, "T": 3, "fused": False} | settings
    return models.PooledNet((4, 4, 8), (1, 2, 1), stem_kernel=kernel, neuron=make, residual=residual, **settings).eval()


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
EVENTS = torch.randint(0, 4, (3, 2, 2, 8, 8), generator=torch.Generator().manual_seed(1)).float()


@torch.no_grad()
def assert_same_after(load, a, b, x):
    """Asserts that b computes the same as a after ``load``, but not before it."""
    expected = a(x)
    assert not torch.equal(b(x), expected) and not torch.equal(expected[0], expected[1])
    report = load()
    assert torch.equal(b(x), expected)
    return report


def assert_same_entries(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


@pytest.mark.parametrize("of", NEURONS)
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("connect_f", ["ADD", "AND", "IAND", None])
@pytest.mark.parametrize("dialect", [*CONTAINERS, "torchvision"])
def test_resnets_of_others(dialect, connect_f, bottleneck, of):
    """``connect_f=None`` means Spiking ResNet."""
    if dialect == "torchvision" and connect_f is None:
        pytest.skip("test_every_dialect_round_trips has it")
    torch.manual_seed(0)
    make, theirs = NEURONS[of]
    other = scrambled(ForeignResNet(CONTAINERS.get(dialect), bottleneck, connect_f, theirs), IMAGES)
    style = {"residual": "spiking"} if connect_f is None else {"connect_f": connect_f}
    model = resnet(bottleneck=bottleneck, make=make, **style)
    report = assert_same_after(lambda: models.load_checkpoint(model, other.state_dict()), other, model, IMAGES)
    assert (report.dialect, report.mapped, report.complete) == (dialect, len(model.state_dict()), True)
    assert_same_entries(models.to_dialect(model, dialect), other.state_dict())


@pytest.mark.parametrize("of", NEURONS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("residual", ["sew", "spiking", "plain"])
@pytest.mark.parametrize("dialect", CONTAINERS)
def test_event_nets_of_others(dialect, residual, kernel, of):
    torch.manual_seed(0)
    make, theirs = NEURONS[of]
    other = scrambled(ForeignEventNet(CONTAINERS[dialect], residual, kernel, theirs), EVENTS)
    model = event_net(residual, kernel, make)
    report = assert_same_after(lambda: models.load_checkpoint(model, other.state_dict()), other, model, EVENTS)
    assert (report.dialect, report.mapped, report.complete) == (dialect, len(model.state_dict()), True)
    assert_same_entries(models.to_dialect(model, dialect), other.state_dict())


NETWORKS = {
    "sew": resnet,
    "sew bottleneck": lambda: resnet(bottleneck=True),
    "sew PLIF": lambda: resnet(make=neuron.ParametricLIFNode, connect_f="IAND"),
    "spiking": lambda: resnet("spiking"),
    "spiking bottleneck PLIF": lambda: resnet("spiking", True, neuron.ParametricLIFNode),
    "plain": lambda: resnet("plain"),
    "plain bottleneck PLIF": lambda: resnet("plain", True, neuron.ParametricLIFNode),
    "sew_resnet": lambda: models.create_model("sew_resnet", blocks=[1, 2], widths=[4, 8], stem="small", T=3),
    "sew_7b_net": lambda: models.create_model("sew_7b_net", T=1),
    "spiking_7b_net": lambda: models.create_model("spiking_7b_net", T=1, stem_kernel=3),
    "plain_7b_net": lambda: models.create_model("plain_7b_net", T=1, neuron=neuron.IFNode),
    "sew_wide_7b_net": lambda: models.create_model("sew_wide_7b_net", T=1),
    "sew_wide_7b_net 3x3": lambda: models.create_model("sew_wide_7b_net", T=1, stem_kernel=3),
    "sew_cifar10_net": lambda: models.create_model("sew_cifar10_net", T=3),
    "spiking_cifar10_net": lambda: models.create_model("spiking_cifar10_net", T=3, neuron=neuron.ParametricLIFNode),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_dialect_round_trips(name, tmp_path):
    """A file in each dialect, loaded into a new network, gives the same outputs and the same entries."""

    torch.manual_seed(0)
    model = NETWORKS[name]()
    resnets = isinstance(model, models.SEWResNet)
    x = IMAGES if resnets else torch.rand(2, model.layer1.conv.in_channels, *(2 * [2**model.stages]))
    scrambled(model, x)
    with torch.no_grad():
        expected = model(x)
        assert not torch.equal(expected[0], expected[1]) and not torch.equal(expected, NETWORKS[name]().eval()(x))
    for dialect in dialects(model):
        path, fresh = tmp_path / f"{dialect}.pt", NETWORKS[name]().eval()
        models.save_checkpoint(model, path, dialect)
        report = models.load_checkpoint(fresh, path)
        assert report.dialect == ("torchvision" if resnets and dialect == "sewsnn" else dialect)
        assert report.container == "model" and report.complete
        assert_same_entries(fresh.state_dict(), model.state_dict())
        with torch.no_grad():
            assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize("name", [name for name in models.list_models() if name not in FREE_SIZE])
def test_names_are_one_to_one(name):
    with torch.device("meta"):
        model = models.create_model(name, neuron=neuron.ParametricLIFNode)
    for names in dialects(model).values():
        assert names.keys() == model.state_dict().keys() and len(set(names.values())) == len(names)


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "older"])
def test_weights_of_an_ann(counted):
    """torchvision's ANN weights: no neurons, and in old files no num_batches_tracked."""
    other = scrambled(ForeignResNet(None, True, "ADD", nn.Identity)).state_dict()
    other = {key: value for key, value in other.items() if counted or not key.endswith("num_batches_tracked")}
    model = resnet(bottleneck=True)
    report = models.load_checkpoint(model, other)
    assert report.complete and report.dialect == "torchvision" and len(report.kept) == (0 if counted else 15)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in other.items())
    assert counted or "15 x num_batches_tracked" in str(report)


def authors_file(path, **args):
    """A file as the authors' training writes it."""
    torch.manual_seed(0)
    other = scrambled(ForeignResNet(CONTAINERS["authors"], False, "ADD", IF), IMAGES)
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-3, momentum=0.9)
    other(IMAGES).sum().backward()
    optimizer.step()
    content = {
        "model": other.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 320).state_dict(),
        "epoch": 319,
        "args": argparse.Namespace(lr=0.1, T=4, output_dir="./logs", **args),
        "max_test_acc1": 63.18,
    }
    torch.save(content, path)
    return other


def test_whole_file_of_the_authors(tmp_path):
    path = tmp_path / "checkpoint_319.pth"
    other, model = authors_file(path, model="sew_resnet18", connect_f="ADD"), resnet()
    report = assert_same_after(lambda: models.load_checkpoint(model, path), other, model, IMAGES)
    assert report.container == "model" and report.notes == ()
    assert report.ignored == ("optimizer", "lr_scheduler", "epoch", "args", "max_test_acc1")
    assert str(path) in str(report) and "'authors', under 'model'" in str(report)


def test_another_connection_is_said(tmp_path):
    """No weight depends on the connection: the file loads, and the network computes something else."""
    authors_file(tmp_path / "c.pth", connect_f="IAND")
    report = models.load_checkpoint(resnet(), tmp_path / "c.pth")
    assert report.complete and "made with connect_f='IAND', the model has 'ADD'" in str(report)


@pytest.mark.parametrize("key", ["model", "net", "state_dict", "model_state_dict", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_containers_and_prefixes(key, prefix):
    a, b = scrambled(resnet()), resnet()
    state = {prefix + name: value for name, value in models.to_dialect(a, "authors").items()}
    assert models.load_checkpoint(b, {key: state, "epoch": 1}).container == key
    assert_same_entries(a.state_dict(), b.state_dict())


def test_a_prefix_of_some_names_is_no_prefix():
    state = {(f"module.{key}" if key.startswith("fc") else key): v for key, v in resnet().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing: fc\.weight, fc\.bias; not in the model: module\.fc\.weight"):
        models.load_checkpoint(resnet(), state)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models(wrap, tmp_path):
    a, b = scrambled(resnet()), resnet()
    models.save_checkpoint(wrap(a), tmp_path / "c.pt", "authors")
    models.load_checkpoint(wrap(b), tmp_path / "c.pt")
    assert_same_entries(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("stored", [torch.float16, torch.float64])
@pytest.mark.parametrize("used", [torch.float32, torch.float64])
def test_values_get_the_models_dtype(stored, used):
    a, b = scrambled(resnet()).to(stored).state_dict(), resnet().to(used)
    models.load_checkpoint(b, a)
    for key, value in b.state_dict().items():
        dtype = torch.int64 if key.endswith("num_batches_tracked") else used
        assert value.dtype == dtype and torch.equal(value, a[key].to(dtype))


def test_w_of_one_element():
    """Some versions store the parameter of PLIF as [1]."""
    a, b = scrambled(resnet(make=neuron.ParametricLIFNode)), resnet(make=neuron.ParametricLIFNode)
    state = {key: value[None] if key.endswith(".w") else value for key, value in a.state_dict().items()}
    models.load_checkpoint(b, state)
    assert_same_entries(a.state_dict(), b.state_dict())


def changed(change, **settings):
    state = models.to_dialect(scrambled(resnet(**settings)), "authors")
    change(state)
    return state


BLOCK = "layer2.0.conv1.module"
WRONG = {
    "missing": (
        lambda s: s.pop(f"{BLOCK}.0.weight"),
        {},
        f"61 of 62 entries fit\\): missing: {BLOCK}.0.weight \\(here layer2.0.conv1.weight\\)$",
    ),
    "foreign": (lambda s: s.update({"head.bias": torch.ones(3)}), {}, "62 of 62 .* not in the model: head.bias$"),
    "classes": (None, {"num_classes": 7}, r"does not fit: fc.weight, \[7, 8\] in the file, \[5, 8\] in the model, fc"),
    "kernel": (None, {"stem_kernel": 3}, r"conv1.weight, \[4, 3, 3, 3\] in the file, \[4, 3, 7, 7\] in the model$"),
    "PLIF": (None, {"make": neuron.ParametricLIFNode}, "not in the model: sn1.w, .*the neurons of the file are PLIF"),
    "spiking": (
        None,
        {"residual": "spiking"},
        r"missing: layer2.0.downsample.0.module.0.weight \(here layer2.0.downsample.0.weight\).*"
        "not in the model: layer2.0.downsample.module.0.weight",
    ),
    "text": (lambda s: s.update({"fc.bias": "zero"}), {}, "fc.bias, a str instead of a tensor$"),
    "integers": (lambda s: s.update({"fc.bias": torch.ones(5, dtype=torch.int64)}), {}, "torch.int64 in the file"),
    "complex": (lambda s: s.update({"fc.bias": torch.ones(5) + 1j}), {}, "torch.complex64 in the file"),
    "sparse": (lambda s: s.update({"fc.bias": torch.ones(5).to_sparse()}), {}, "not a dense tensor with values"),
    "meta": (lambda s: s.update({"fc.bias": torch.ones(5, device="meta")}), {}, "not a dense tensor with values"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(case, tmp_path):
    """The model then stays unchanged: neither other entries nor parts of the model are loaded."""
    change, settings, message = WRONG[case]
    state = changed(change or (lambda s: None), **settings)
    model = scrambled(resnet())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        models.load_checkpoint(model, tmp_path / "c.pth")
    assert str(error.value).startswith(str(tmp_path / "c.pth")) and "\n" not in str(error.value)
    assert_same_entries(model.state_dict(), before)
    report = models.load_checkpoint(model, tmp_path / "c.pth", strict=False)
    assert not report.complete and len(report.names) == len(before)
    after = model.state_dict()
    for key, name in report.names.items():
        fits = key not in report.missing + report.kept and name not in report.mismatched
        assert torch.equal(after[key], state[name] if fits else before[key]), key


def test_missing_w_is_said():
    with pytest.raises(
        CheckpointError, match=r"missing: sn1\.w, .*the neurons of the model are PLIF and have a parameter w"
    ):
        models.load_checkpoint(resnet(make=neuron.ParametricLIFNode), resnet().state_dict())


def test_another_network_altogether():
    state = {"encoder.weight": torch.ones(3), "encoder.bias": torch.ones(3)}
    dialects = r"torchvision, sewsnn, authors, containers"
    expected = rf"no entry of this SEWResNet in any dialect \({dialects}\): the file has encoder"
    with pytest.raises(CheckpointError, match=expected):
        models.load_checkpoint(resnet(), state)


class Stranger:
    """A class that is not a tensor."""


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "in args", "as model"])
@pytest.mark.parametrize("kind", ["command", "class"])
def test_pickled_objects_are_refused(kind, place, legacy, tmp_path):
    path, marker, model = tmp_path / "c.pth", tmp_path / "ran", scrambled(resnet())
    thing = Payload(marker) if kind == "command" else Stranger()
    content = {"model": resnet().state_dict()}
    content |= {
        "beside": {"x": thing},
        "in args": {"args": argparse.Namespace(model="sew_resnet18", x=thing)},
        "as model": {"model": thing},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    name = r"posix\.system" if kind == "command" else r"test_checkpoints\.Stranger"
    with pytest.raises(CheckpointError, match=rf"c\.pth holds a pickled {name} in addition to tensors; it is refused"):
        models.load_checkpoint(model, path, strict=False)
    assert not marker.exists()
    assert_same_entries(model.state_dict(), before)
    torch.load(path, weights_only=False)
    assert marker.exists() == (kind == "command")  # it would have


@pytest.mark.parametrize("kind", ["protocol 4", "TorchScript"])
def test_no_message_advises_to_run_a_file(kind, tmp_path):
    """The error does not repeat torch's advice to use weights_only=False."""
    path, marker = tmp_path / "c.pth", tmp_path / "ran"
    if kind == "protocol 4":
        torch.save({"model": resnet().state_dict(), "x": Payload(marker)}, path, pickle_protocol=4)
    else:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.ones(2)), path)
    with pytest.raises(CheckpointError, match=r"c\.pth is not a readable checkpoint .*TorchScript") as error:
        models.load_checkpoint(resnet(), path)
    assert "weights_only" not in str(error.value) and not marker.exists()


def test_only_one_class_is_let_in_and_only_meanwhile(tmp_path):
    authors_file(tmp_path / "c.pth")
    models.load_checkpoint(resnet(), tmp_path / "c.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(CheckpointError, match=r"a pickled argparse\.Namespace"):  # a training run's own have none
        checkpoint.load(tmp_path / "c.pth")


def damaged(path, kind):
    models.save_checkpoint(resnet(), path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "short": whole[:100],
            "half": whole[: len(whole) // 2],
            "no end": whole[:-30],
            "text": b"version https://git-lfs.github.com/spec/v1\n",
            "noise": bytes(range(256)) * 40,
        }[kind]
    )


@pytest.mark.parametrize("kind", ["empty", "short", "half", "no end", "text", "noise"])
def test_damaged_files(kind, tmp_path):
    path, model = tmp_path / "c.pth", scrambled(resnet())
    damaged(path, kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"c\.pth is not a readable checkpoint") as error:
        models.load_checkpoint(model, path, strict=False)
    assert "\n" not in str(error.value)
    assert_same_entries(model.state_dict(), before)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none\.pth"):
        models.load_checkpoint(resnet(), tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {tmp_path}: Is a directory"):
        models.load_checkpoint(resnet(), str(tmp_path))


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}, {"epoch": 3}, {"model": {}}, {1: torch.ones(2)}, "x"])
def test_files_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth is not a checkpoint: it must hold"):
        models.load_checkpoint(resnet(), tmp_path / "c.pth")


def test_bad_arguments():
    with pytest.raises(TypeError, match="model must be a module, got str"):
        models.load_checkpoint("sew_resnet18", {})
    with pytest.raises(TypeError, match="path_or_state_dict must be a path or a mapping, got int"):
        models.load_checkpoint(resnet(), 3)
    with pytest.raises(ValueError, match="'sewsnn', 'torchvision', 'authors', 'containers', got 'author'"):
        models.to_dialect(resnet(), "author")
    with pytest.raises(ValueError, match="no names for PooledNet, only 'sewsnn', 'authors', 'containers' have"):
        models.to_dialect(event_net(), "torchvision")
    with torch.device("meta"):
        model = resnet()
    with pytest.raises(ValueError, match="model is on the meta device"):
        models.load_checkpoint(model, resnet().state_dict())


def test_files_hold_nothing_but_the_weights(tmp_path):
    """The file contains no larger storages of views, no strides and no gradients."""
    model = resnet().to(memory_format=torch.channels_last)
    model.fc.bias = nn.Parameter(torch.zeros(1_000_000)[:5])
    models.save_checkpoint(model, tmp_path / "c.pth", "torchvision", container="")
    assert os.path.getsize(tmp_path / "c.pth") < 200_000
    for key, value in torch.load(tmp_path / "c.pth", weights_only=True).items():
        assert value.is_contiguous() and not value.requires_grad and torch.equal(value, model.state_dict()[key])


def test_any_other_module_has_its_own_names():
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    assert models.load_checkpoint(b, a.state_dict()).dialect == "sewsnn"
    assert torch.equal(a.weight, b.weight)


def test_a_checkpoint_that_is_written_is_a_file_like_others(tmp_path):
    """A link stays a link, the permissions follow the umask, and no temporary file is left."""
    file, link = tmp_path / "c.pth", tmp_path / "latest.pth"
    link.symlink_to(file)
    old = os.umask(0o077)
    try:
        models.save_checkpoint(resnet(), link)
    finally:
        os.umask(old)
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [file, link]
    models.save_checkpoint(scrambled(resnet()), link)
    assert link.is_symlink() and models.load_checkpoint(resnet(), file).complete
