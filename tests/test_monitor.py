"""train.monitor: firing rates and gradient norms of the blocks during training, exact and resumable."""

import csv
import subprocess

import pytest
import torch
from runs import CONFIG, PROCESS, command, in_mid_epoch, run, wait_for
from torch.nn.functional import cross_entropy

from sewsnn import functional, models, neuron
from sewsnn.analysis.blocks import block_rates
from sewsnn.analysis.monitor import Monitor
from sewsnn.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def network(residual="sew", connect_f="ADD", **more):
    torch.manual_seed(0)
    settings = {"blocks": [2, 1], "widths": [4, 8], "num_classes": 5, "stem": "small", "T": 3, "in_channels": 2}
    return models.create_model(f"{residual}_resnet", connect_f=connect_f, **settings, **more)


def rate(*tensors):
    return sum(float(t.double().sum()) for t in tensors) / sum(t.numel() for t in tensors)


def by_hand(net, batches):
    """S, A and O of each block and the norm of dL/dS, by the plain modules one after the other, in plain PyTorch."""
    found = {
        name: {"S": [], "A": [], "O": [], "gradient": []} for name, m in net.named_modules() if name.count(".") == 1
    }
    found = {name: value for name, value in found.items() if name.startswith("layer")}
    for x, y in batches:
        functional.reset_net(net)
        s = net.sn1(net.bn1(net.conv1(x)).expand(net.T, -1, -1, -1, -1) + 0)
        inputs = {}
        for name in found:
            block = net.get_submodule(name)
            s.retain_grad()
            inputs[name] = s

            def steps(module, z):
                return module(z.flatten(0, 1)).unflatten(0, z.shape[:2])

            branch = block.sn1(steps(block.bn1, steps(block.conv1, s)))
            branch = steps(block.bn2, steps(block.conv2, branch))
            shortcut = s if block.downsample is None else steps(block.downsample, s)
            if block.style.residual == "sew":
                shortcut = s if block.downsample is None else block.downsample_sn(shortcut)
                a = block.sn2(branch)
                o = {"ADD": a + shortcut, "AND": a * shortcut, "IAND": shortcut * (1 - a)}[block.style.connect_f]
                found[name]["A"].append(a.detach())
            else:
                o = block.sn2(branch + shortcut if block.style.residual == "spiking" else branch)
                if block.style.residual == "plain":
                    found[name]["A"].append(o.detach())
            found[name]["S"].append(s.detach())
            found[name]["O"].append(o.detach())
            s = o
        logits = net.fc(s.mean((3, 4)).mean(0))
        cross_entropy(logits, y).backward()
        for name, s_in in inputs.items():
            found[name]["gradient"].append(float(s_in.grad.double().norm()))
    return found


FORMS = [("sew", "ADD"), ("sew", "AND"), ("sew", "IAND"), ("spiking", "ADD"), ("plain", "ADD")]


@pytest.mark.parametrize("residual, connect_f", FORMS)
@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode])
def test_rates_and_norms_are_those_of_plain_pytorch(residual, connect_f, node):
    torch.manual_seed(1)
    batches = [(torch.rand(n, 2, 6, 6, dtype=torch.float64) * 4, torch.arange(n) % 5) for n in (4, 3)]
    net, other = (network(residual, connect_f, neuron=node).double().train() for _ in range(2))
    monitor = Monitor(net)
    with monitor:
        for x, y in batches:
            cross_entropy(net(x), y).backward()
    expected = by_hand(other, batches)
    row = monitor.row(monitor.sums)
    assert list(row) == list(expected) and len(row) == 3
    for name, values in expected.items():
        for key in ("S", "O"):
            assert row[name][key] == rate(*values[key]), (name, key)
        assert row[name]["A"] == (rate(*values["A"]) if values["A"] else None)
        assert row[name]["active"] == rate(*((o != 0).double() for o in values["O"]))
        mean_square = sum(norm**2 for norm in values["gradient"]) / 2
        assert row[name]["gradient"] == pytest.approx(mean_square**0.5, rel=1e-12)
    assert any(values["S"] > 0 and values["gradient"] > 0 for values in row.values())
    assert not any(m._forward_hooks for m in net.modules()), "hooks remain"
    before = monitor.sums.clone()
    net(batches[0][0])
    assert torch.equal(monitor.sums, before), "only calls inside the context count"


@pytest.mark.parametrize("residual, connect_f", FORMS)
def test_block_rates_are_those_of_plain_pytorch(residual, connect_f):
    torch.manual_seed(1)
    xs = [torch.rand(n, 2, 6, 6, dtype=torch.float64) * 4 for n in (4, 3)]
    net = network(residual, connect_f).double().train()
    net(xs[0])
    found = block_rates(net, xs)
    assert net.training
    net.eval()
    expected = by_hand(net, [(x, torch.zeros(len(x), dtype=torch.long)) for x in xs])
    for of_block in found:
        values = expected[of_block.name]
        assert (rate(*values["S"]), rate(*values["O"])) == (of_block.S, of_block.O)
        assert (rate(*values["A"]) if values["A"] else None) == of_block.A
        assert of_block.active == rate(*((o != 0).double() for o in values["O"]))


def test_scale_of_the_loss_is_undone():
    x, y = torch.rand(4, 2, 6, 6), torch.arange(4)
    rows = []
    for scale in (1.0, 4096.0):
        net = network().train()
        monitor = Monitor(net)
        monitor.scale = torch.tensor(scale)
        with monitor:
            (cross_entropy(net(x), y) * scale).backward()
        rows.append(monitor.row(monitor.sums))
    assert rows[0]["layer1.0"]["gradient"] == pytest.approx(rows[1]["layer1.0"]["gradient"], rel=1e-5)


def test_no_copy_to_the_host(monkeypatch):
    """A step with a monitor reads no number from a tensor."""
    net, x, y = network().train(), torch.rand(4, 2, 6, 6), torch.arange(4)
    with Monitor(net) as monitor:

        def refuse(self, *args):
            raise AssertionError("a number was read from a tensor")

        for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        cross_entropy(net(x), y).backward()
        monkeypatch.undo()
    assert monitor.row(monitor.sums)["layer1.0"]["gradient"] > 0


def rows_of(folder):
    with open(folder / "blocks.csv") as file:
        return list(csv.DictReader(file))


def test_run_writes_and_resumes_it(tmp_path):
    """A run that was killed in the middle of an epoch ends with the same numbers."""
    words = ["--train.monitor", "true"]
    whole = run(tmp_path / "whole", *words)
    assert whole.returncode == 0, whole.stderr
    parts = tmp_path / "parts"
    killed = subprocess.Popen(command(parts, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **PROCESS)
    wait_for(killed, lambda: in_mid_epoch(parts, 1))
    killed.kill()
    killed.communicate()
    assert not (parts / "result.json").exists()
    resumed = run(parts, *words, "--resume")
    assert resumed.returncode == 0 and "resumed at epoch" in resumed.stdout, resumed.stderr
    rows = rows_of(tmp_path / "whole")
    assert [(row["epoch"], row["block"]) for row in rows] == [
        (str(epoch), block) for epoch in range(3) for block in ("layer1.0", "layer2.0")
    ]
    assert all(float(row[key]) > 0 for row in rows for key in ("S", "A", "O", "active", "gradient"))
    assert rows == rows_of(tmp_path / "parts")


def test_excluded_settings(capsys, tmp_path):
    for words in (["--train.compile", "default"], ["--train.cuda_graph", "true"]):
        command_line = ["train", str(CONFIG), "--output", str(tmp_path / "run"), "--train.monitor", "true", *words]
        assert main(command_line) == 1
        err = capsys.readouterr().err
        assert "train.monitor: true and train." in err and err.count("\n") == 1
