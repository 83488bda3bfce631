"""Progress bars with images per second, and the estimate of the remaining time."""

import contextlib
import io
import re
import time
from pathlib import Path

import pytest

from sewsnn import progress
from sewsnn.cli import main, parse_overrides
from sewsnn.progress import Progress, time_left, watched
from sewsnn.train.config import load_config
from sewsnn.train.distributed import Processes
from sewsnn.train.evaluation import evaluate
from sewsnn.train.loop import Trainer

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")
SMALL = ["--blocks", "[1]", "--widths", "[8]", "--batch_size", "256", "--ema", "0.5"]


@pytest.fixture(scope="module", autouse=True)
def at_once():
    """Draws bars at each step instead of at most twice per second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_INTERVAL", 0.0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run, and the output of its training on stdout and stderr."""
    folder, out, err = tmp_path_factory.mktemp("run") / "run", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["train", CONFIG, "--output", str(folder), *SMALL, "--epochs", "3"]) == 0
    return folder, out.getvalue(), err.getvalue()


def bars(err: str) -> dict[str, list[str]]:
    """Returns title -> texts of its bar."""
    drawn = re.findall(r"\r([^\r|]+):\s+\d+%\|.*?\| (\d+/\d+) steps \[.*?, (\S+) images/s", err)
    return {title: [f"{n} {speed}" for t, n, speed in drawn if t == title] for title, *_ in drawn}


def test_training(run):
    """Bars for training, both evaluations and firing rates; each epoch's line has the remaining time."""
    _, out, err = run
    seen = bars(err)
    for epoch in (1, 2, 3):
        for title, steps in ((f"epoch {epoch}/3", 6), (f"epoch {epoch}/3, test", 2), ("firing rates", 2)):
            assert any(re.match(rf"{steps}/{steps} [\d,]+$", text) for text in seen[title]), (title, seen)
        assert f"epoch {epoch}/3, test of the average" in seen
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [bool(re.search(r", \d+ s left$", line)) for line in lines] == [True, True, False]


def test_evaluation_and_export(run, tmp_path, capsys):
    folder = run[0]
    assert main(["eval", str(folder)]) == 0
    seen = bars(capsys.readouterr().err)
    assert any(text.startswith("2/2 ") and "?" not in text for text in seen["evaluation"])
    assert any(text.startswith("3/3 ") for text in seen["latency"])
    assert main(["export", str(folder / "checkpoint.pt"), str(tmp_path / "net.pt2")]) == 0
    out, err = capsys.readouterr()
    seen = bars(err)
    assert {"tracing the network", "checking the file", "checking the file with one more sample"} <= seen.keys(), err
    assert "?" not in seen["checking the file"][0] and "images/s" not in out


def test_the_time_left(tmp_path, capsys):
    """The estimate uses the epochs of this process; after a resume in mid-epoch only a part of that epoch counts. Only
    the first process shows it."""
    config = load_config(CONFIG, parse_overrides([*SMALL, "--output", str(tmp_path / "run"), "--epochs", "10"]))
    trainer = Trainer(config)
    trainer.epoch, trainer._since = 4, time.perf_counter() - 20
    assert trainer._left(first=2.0) == pytest.approx(60, rel=0.01)  # two epochs in 20 s, six to come
    assert trainer._left(first=3.5) == pytest.approx(240, rel=0.01)
    trainer.seconds = 100.0  # next to nothing was done since the resume: as in the whole run
    assert trainer._left(first=4.0) == pytest.approx(180, rel=0.01)
    capsys.readouterr()
    second = Processes("cpu")
    second.rank = 1
    evaluate(trainer.model, trainer.source, trainer.device, second)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (300, "5 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_lengths_of_time(seconds, text):
    assert time_left(seconds) == text


def test_batches_are_handed_on_as_they_are(capsys):
    batches = [([1], [2, 3]), ([4], [5])]
    assert list(watched(batches, "looking", 2)) == batches
    assert "looking" in capsys.readouterr().err
    assert list(watched(batches, "looking", 2, quiet=True)) == batches
    with Progress("nothing", 3, quiet=True) as bar:
        bar.add(4)
    assert capsys.readouterr().err == ""
