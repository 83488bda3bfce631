"""``result.json`` and the printed lines: each number comes from the right epoch and network."""

import json
import re

import pytest

from sewsnn.train import result
from sewsnn.train.config import from_dict
from sewsnn.train.metrics import COLUMNS


def row(epoch, test, average=None, **more):
    return dict.fromkeys(COLUMNS) | {
        "epoch": epoch,
        "lr": 0.025,
        "train_loss": 1.25,
        "train_accuracy": 0.31,
        "test_loss": 1.75,
        "test_accuracy": test,
        "test_accuracy5": test + 0.1,
        "average_accuracy": average,
        "train_images_per_second": 640.0,
        "data_wait": 0.07,
        "corrupt_samples": epoch,
        **more,
    }


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a result; ``drawn`` records the content of the figures."""
    drawn = {}
    monkeypatch.setattr(
        result, "draw_curves", lambda history, title, path, published: drawn.update(published=published)
    )
    monkeypatch.setattr(result, "draw_firing_rates", lambda rates, title, path: drawn.update(rates=rates))

    def call(history, **settings):
        config = from_dict({"train": {"device": "cpu"}, **settings})
        found = result.write_result(tmp_path, config, history, {"sn1": 0.25}, 12.5, "native", 3)
        assert json.loads((tmp_path / result.RESULT).read_text()) == json.loads(json.dumps(found))
        return found, drawn, result.result_lines(found, config)

    return call


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_the_last_epoch_and_the_best_one_are_told_apart(write):
    found, drawn, lines = write(
        [row(0, 0.5, 0.4), row(1, 0.8, 0.6), row(2, 0.7, 0.65), row(3, 0.8, 0.62)], published={"test_accuracy": 81.5}
    )
    assert (found["test_accuracy"], found["test_accuracy5"]) == (0.8, pytest.approx(0.9))
    assert (found["best_test_accuracy"], found["best_epoch"], found["epochs"]) == (0.8, 1, 4)  # the first of the best
    assert (found["average_accuracy"], found["best_average_accuracy"]) == (0.62, 0.65)
    assert (found["seconds"], found["backend"], found["processes"], found["corrupt_samples"]) == (12.5, "native", 3, 3)
    assert found["generated_data"] is False and found["firing_rates"] == {"sn1": 0.25} == drawn["rates"]
    assert drawn["published"] == found["published"]["test_accuracy"] == 81.5
    assert numbers(lines[0]) == ["80.00", "80.00", "4", "12.5", "62.00", "65.00"]
    assert numbers(lines[1])[0] == "3" and numbers(lines[2]) == ["81.50"] and len(lines) == 3
    found, drawn, lines = write([row(0, 0.9), row(1, 0.7, corrupt_samples=0)])
    assert (found["test_accuracy"], found["best_test_accuracy"], found["best_epoch"]) == (0.7, 0.9, 0)
    assert "average_accuracy" not in found and drawn["published"] is None
    assert [numbers(line) for line in lines] == [["70.00", "90.00", "2", "12.5"]]


def test_generated_data_has_no_published_result(write):
    settings = {"data": {"name": "cifar10", "generated": 64}, "published": {"test_accuracy": 95.0}}
    found, drawn, lines = write([row(0, 0.5)], **settings)
    assert found["generated_data"] is True and drawn["published"] is None
    assert not any("95" in line for line in lines)


def test_an_epoch_is_one_line_with_its_numbers():
    plain, full = row(9, 0.5), row(9, 0.5, 0.42)
    expected = ["10", "120", "0.025", "1.2500", "31.00", "1.7500", "50.00", "640", "7"]
    assert numbers(result.epoch_line(plain, 120)) == expected
    assert numbers(result.epoch_line(full, 120)) == [*expected[:7], "42.00", *expected[7:]]
    assert len(numbers(result.epoch_line(full, 120, 90.0))) > 10
