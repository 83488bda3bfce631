"""The figures show the right data and words."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT

from sewsnn.analysis import figures
from sewsnn.cli import main
from sewsnn.data import cifar10, imagenet

MEANS = {"imagenet": (imagenet.MEAN, imagenet.STD), "cifar10": (cifar10.MEAN, cifar10.STD)}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", MEANS)
def test_normalised_grey_is_grey_and_red_is_red(name, tmp_path):
    mean, std = (torch.tensor(values)[:, None, None] for values in MEANS[name])
    grey = torch.linspace(0, 1, 64).view(1, 8, 8).expand(3, 8, 8)
    red = torch.stack([torch.full((8, 8), 0.8), torch.zeros(8, 8), torch.zeros(8, 8)])
    for colours, file in ((grey, "grey.png"), (red, "red.png")):
        figures.draw_samples((colours - mean)[None] / std, torch.zeros(1), "x", tmp_path / file, 1, MEANS[name])
    found = pixels(tmp_path / "grey.png")
    assert (found.max(-1) - found.min(-1)).max() <= 2
    found = pixels(tmp_path / "red.png").reshape(-1, 3)
    assert (np.abs(found - [204, 0, 0]).max(-1) <= 2).sum() > 1000


class Texts:
    """Returns the words of a figure and the drawn data."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(figures, "_save", self.keep)

    def keep(self, figure, path):
        figure.canvas.draw()
        self.figure = figure
        self.titles = [axes.get_title() for axes in figure.axes]
        self.head = figure.get_suptitle()
        self.ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        self.labels = [text.get_text() for axes in figure.axes for text in axes.texts]
        self.legends = [t.get_text() for a in figure.axes if a.get_legend() for t in a.get_legend().get_texts()]


def test_events_say_what_their_colours_mean_and_every_column_its_time(monkeypatch, tmp_path):
    texts = Texts(monkeypatch)
    x = torch.zeros(3, 2, 2, 4, 4)
    x[:, :, 1, 0, 0] = 5  # on
    x[:, :, 0, 3, 3] = 5
    figures.draw_samples(x, torch.tensor([3, 4]), "x", tmp_path / "x.png")
    assert "red: more on events (p = 1), blue: more off events (p = 0)" in texts.head
    assert [title.split("\n")[-1] for title in texts.titles[:3]] == ["t = 1", "t = 2", "t = 3"]
    assert "class 3" in texts.titles[0] and "class 4" in texts.titles[3]
    shown = texts.figure.axes[0].images[0]
    red, blue = (shown.cmap(shown.norm(shown.get_array()[i, i])) for i in (0, 3))
    assert red[0] > red[2] and blue[2] > blue[0]


def row(epoch, value=0.5, average=None):
    out = {"epoch": epoch, "average_accuracy": average}
    return out | {f"{split}_{name}": value for split in ("train", "test") for name in ("loss", "accuracy")}


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_epochs_are_whole_numbers(monkeypatch, tmp_path, count):
    texts = Texts(monkeypatch)
    figures.draw_curves([row(epoch, average=0.6) for epoch in range(count)], "run", tmp_path / "x.png", 60.0)
    shown = [float(tick) for tick in texts.ticks if tick]
    assert shown and all(tick == int(tick) for tick in shown) and (count > 1 or 1 in shown)
    assert "test, moving average" in texts.legends


def test_no_moving_average_no_line(monkeypatch, tmp_path):
    texts = Texts(monkeypatch)
    figures.draw_curves([row(0), row(1, math.nan)], "run", tmp_path / "x.png")
    assert set(texts.legends) == {"train", "test"}


def test_a_rate_is_not_called_zero_unless_it_is(monkeypatch, tmp_path):
    texts = Texts(monkeypatch)
    figures.draw_firing_rates({"a": 0.0, "b": 4.2e-4, "c": 0.123456, "d": 3e-9}, "run", tmp_path / "x.png")
    assert texts.labels == ["0.000", "4.2e-04", "0.123", "3.0e-09"]
    for rates in ({}, {"a": 0.0}, {f"layer{i}": 0.1 for i in range(150)}, {"a": math.nan}):
        figures.draw_firing_rates(rates, "run" * 200, tmp_path / "x.png")


def test_show_draws_every_data_set(tmp_path):
    for config in ("digits", "imagenet/sew_resnet18", "dvs128_gesture/sew_add", "cifar10/sew_arctan"):
        words = [] if config == "digits" else ["--data.generated", "8", "--data.batch_size", "8"]
        path = tmp_path / "x.png"
        assert (
            main(
                [
                    "data",
                    "show",
                    str(ROOT / "configs" / f"{config}.yaml"),
                    "--output",
                    str(path),
                    "--samples",
                    "2",
                    *words,
                ]
            )
            == 0
        )
        assert pixels(path).std() > 5
        path.unlink()
