"""``sewsnn eval``: results per time-step, for a run or for any weights."""

import json
from pathlib import Path

import pytest
import torch

from sewsnn.analysis import firing_rates
from sewsnn.analysis.per_step import evaluate_per_step, latency
from sewsnn.cli import main
from sewsnn.models import create_model
from sewsnn.train import checkpoint, finished

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")
SMALL = ["--blocks", "[1]", "--widths", "[8]", "--epochs", "1", "--batch_size", "256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "run"
    assert main(["train", CONFIG, "--output", str(path), *SMALL, "--ema", "0.5"]) == 0
    return path


@pytest.mark.parametrize("sequences", [False, True])
def test_first_steps_are_what_a_network_of_fewer_steps_says(sequences):
    """Accuracy, loss and firing rates after t time-steps equal those of networks that run t time-steps."""
    torch.manual_seed(0)
    net = create_model("sew_resnet", blocks=[1], widths=[8], num_classes=6, stem="small", T=5).eval()
    shape = (5, 12, 3, 8, 8) if sequences else (12, 3, 8, 8)
    x, y = torch.rand(shape), torch.arange(12) % 6
    found = evaluate_per_step(net, [(x[..., :8, :8], y)])
    assert found.samples == 12 and len(found.accuracy) == 5 and net.training is False
    for t in range(1, 6):
        net.T = t
        part = x[:t] if sequences else x
        logits = net(part)
        assert found.accuracy[t - 1] == pytest.approx((logits.argmax(1) == y).float().mean().item())
        assert found.loss[t - 1] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
        for name, rate in firing_rates(net, [part]).items():
            assert found.firing_rates[name][t - 1] == pytest.approx(rate, rel=1e-9)
    net.T = 5
    assert latency(net, x, 2, repeats=2) > 0 and net.T == 5
    with pytest.raises(ValueError, match="batches is empty"):
        evaluate_per_step(net, [])


def test_a_run_is_evaluated(folder, tmp_path, capsys):
    assert main(["eval", str(folder), "--json", str(tmp_path / "eval.json")]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "eval.json").read_text())
    trained = json.loads((folder / "result.json").read_text())
    assert result["T"] == [1, 2, 4] and result["samples"] == 360
    assert result["accuracy"][-1] == pytest.approx(trained["test_accuracy"])
    assert set(result["firing_rates"]) == set(trained["firing_rates"])
    assert f"{100 * trained['test_accuracy']:.2f} %" in output and "latency" in output
    assert all(seconds > 0 for seconds in result["latency"])


def test_the_precision_of_the_configuration(folder, monkeypatch):
    """``train.test_amp`` also applies to sewsnn eval; a wrong --steps is an error before any computation."""
    seen = []

    def watched(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return evaluate_per_step(*arguments)

    monkeypatch.setattr(finished, "evaluate_per_step", watched)
    assert main(["eval", str(folder), "--steps", "9"]) == 1 and seen == []
    for amp in ("off", "bf16"):
        assert main(["eval", str(folder), "--steps", "1", "--test_amp", amp]) == 0
    assert seen == [False, True]


def test_the_moving_average_and_other_weights(folder, tmp_path, capsys):
    trained = json.loads((folder / "result.json").read_text())
    assert main(["eval", str(folder), "--average", "--steps", "4"]) == 0
    assert f"{100 * trained['average_accuracy']:.2f} %" in capsys.readouterr().out
    torch.save(checkpoint.load(folder / checkpoint.NAME)["model"], tmp_path / "weights.pth")
    words = ["--weights", str(tmp_path / "weights.pth"), "--steps", "4", *SMALL]
    assert main(["eval", CONFIG, *words]) == 0
    assert f"{100 * trained['test_accuracy']:.2f} %" in capsys.readouterr().out


def test_what_cannot_be_evaluated(folder, tmp_path, capsys):
    for words, message in (
        (["nope"], "nope does not exist"),
        (["no/pe", "--weights", "x.pt"], "no/pe does not exist"),
        ([CONFIG, "--weights", "nope"], "there is no checkpoint nope"),
        ([str(tmp_path)], f"{tmp_path} is not the folder of a run: it has no config.yaml"),
        ([CONFIG], "--weights must name a checkpoint"),
        ([str(folder), "--steps", "1,5"], "--steps must be 1 to T = 4, got 5"),
        ([str(folder), "--steps", "one"], "--steps must be whole numbers"),
        ([str(folder), "--weights", str(tmp_path / "none.pt")], "there is no checkpoint"),
        ([str(folder), "--widths", "[16]"], "in the file"),
    ):
        assert main(["eval", *words]) == 1
        assert message in capsys.readouterr().err
    for words in (["export", "nope", "out.pt2"], ["convert-checkpoint", "nope", "out", "--to", "authors"]):
        assert main(words) == 1 and capsys.readouterr().err == "sewsnn: error: there is no checkpoint nope\n"
