"""Files of an earlier version still work: exported programs, weights and the checkpoint of a run.

tests/data/old_version/README.md says which version made them. Almost no number in them rounds, and no membrane
potential is close to its threshold, so all spikes must be equal on every machine.
"""

import gzip
import io
from pathlib import Path

import pytest
import torch

from sewsnn import models, neuron
from sewsnn.cli import main
from sewsnn.train import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# torch.export reads programs of an older torch, but not always those of a newer one.
old_enough = pytest.mark.skipif(torch.__version__ < "2.13", reason="torch 2.13 wrote the programs")
FOLDER = Path(__file__).parent / "data" / "old_version"
INFERENCE = ["neurons", "potentials", "connections", "stems", "sew_add", "spiking_lif"]
TRAINING = ["neurons_training", "layers_training"]


def content(name):
    return io.BytesIO(gzip.decompress((FOLDER / f"{name}.gz").read_bytes()))


@pytest.fixture(scope="module")
def cases():
    return torch.load(content("programs.pt"), weights_only=True)


def program(name):
    return torch.export.load(content(f"{name}.pt2")).module()


def equal(found, expected):
    """Asserts that two dictionaries of tensors, or two tensors, are equal bit for bit."""
    if isinstance(expected, torch.Tensor):
        found, expected = {"out": found}, {"out": expected}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")


def close(found, expected, terms):
    """Asserts that two sums of ``terms`` numbers, of a size of about 1, agree up to rounding."""
    limit = terms * torch.finfo(torch.float32).eps * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)


def test_every_program_is_tested(cases):
    names = {path.name for path in FOLDER.glob("*.pt2.gz")}
    assert names == {f"{name}.pt2.gz" for name in INFERENCE + TRAINING} and cases.keys() == {*INFERENCE, *TRAINING}


@old_enough
@pytest.mark.parametrize("name", INFERENCE)
@torch.no_grad()
def test_programs(name, cases):
    """An exported program gives the same spikes, potentials and logits."""
    equal(program(name)(*cases[name]["inputs"]), cases[name]["outputs"])


@old_enough
@pytest.mark.parametrize("name", TRAINING)
def test_programs_in_training(name, cases):
    """Spikes, running statistics and gradients of a program that was exported in training mode."""
    case, module = cases[name], program(name)
    out = module(*case["inputs"])
    out = out if isinstance(out, dict) else {"out": out}
    equal({key: s.detach() for key, s in out.items()}, case["outputs"])
    sum((s * case["grad_outputs"][key]).sum() for key, s in out.items()).backward()
    found = dict(module.named_parameters())
    assert case["gradients"].keys() == found.keys()
    terms = sum(s.numel() for s in out.values())
    for key, gradient in case["gradients"].items():
        assert gradient.abs().max() > 0, key
        close(found[key].grad, gradient, terms)
    for key, value in case["buffers"].items():
        close(module.get_buffer(key).double(), value.double(), terms)


@torch.no_grad()
def test_weights():
    """The state_dict of a SEW ResNet of PLIF nodes."""
    saved = torch.load(content("plif_weights.pt"), weights_only=True)
    net = models.create_model(
        "sew_resnet", neuron=lambda: neuron.ParametricLIFNode(v_threshold=0.91), **saved["settings"]
    ).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = saved["eps"]
    models.load_checkpoint(net, saved["state_dict"])
    assert len({node.w.item() for node in net.modules() if isinstance(node, neuron.ParametricLIFNode)}) == 3
    equal(net(saved["x"]), saved["logits"])  # sums of spikes times multiples of 1/8


def test_a_run_goes_on(tmp_path, capsys):
    """``--resume`` continues the run of that version and ends where it did.

    Convolutions round otherwise on other machines, which can flip a spike and so change the end a little: a
    relative change of 1e-6 in all weights moves the end of a tensor by at most 0.0014 of the tensor's way (measured), a
    lost momentum by up to 1.0.
    """
    pytest.importorskip("sklearn")
    start, end = (torch.load(content(f"run/{name}.pt"), weights_only=True) for name in ("checkpoint", "end"))
    (tmp_path / checkpoint.NAME).write_bytes(content("run/checkpoint.pt").getvalue())
    words = ["train", str(FOLDER / "run" / "config.yaml"), "--output", str(tmp_path), "--resume"]
    assert main(words) == 0, capsys.readouterr().err
    assert "resumed at epoch 2, step 0" in capsys.readouterr().out
    found = checkpoint.load(tmp_path / checkpoint.NAME)
    assert found["epoch"] == 3
    for part in ("model", "average"):
        assert found[part].keys() == end[part].keys()
        for name, value in end[part].items():
            way, missed = (value - start[part][name]).float().norm(), (value - found[part][name]).float().norm()
            assert missed <= way / 20, (part, name)
