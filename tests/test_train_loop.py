"""A short run: its checkpoint, its metrics, and the state that a resume restores."""

import pytest
import small_run
import torch

from sewsnn.train import checkpoint
from sewsnn.train.config import from_dict
from sewsnn.train.loop import Trainer
from sewsnn.train.schedule import factor

TRAIN, TEST = 1437, 360  # samples of digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("loop") / "run")


def whole(number):
    return number == pytest.approx(round(number), abs=1e-6)


def test_each_number_of_the_table_is_what_its_name_says(folder):
    saved = checkpoint.load(folder / checkpoint.NAME)
    config, history = from_dict(saved["config"]), saved["history"]
    assert [row["epoch"] for row in history] == [0, 1] and saved["epoch"] == 2 and saved["step"] == 0
    for epoch, row in enumerate(history):
        steps = -(-TRAIN // config.data.batch_size)
        position = epoch + (steps - 1) / steps
        assert row["lr"] == pytest.approx(config.optimizer.lr * factor(config.schedule, 2, position))
        assert row["train_images_per_second"] * row["train_seconds"] == pytest.approx(TRAIN)
        assert 0 <= row["data_wait"] < 1 and 30 < row["peak_memory_mib"] < 10**5
        assert whole(row["train_accuracy"] * TRAIN) and 0 < row["train_accuracy"] <= row["train_accuracy5"] <= 1
        for kind in ("test", "average"):
            assert whole(row[f"{kind}_accuracy"] * TEST) and whole(row[f"{kind}_accuracy5"] * TEST)
            assert 0 <= row[f"{kind}_accuracy"] < row[f"{kind}_accuracy5"] <= 1
        assert 1 < row["train_loss"] < 4 and 1 < row["test_loss"] < 4
        assert row["loss_scale"] is None and row["corrupt_samples"] == 0
    assert saved["seconds"] > sum(row["train_seconds"] for row in history) > 0
    assert saved["samples"] == 0 and saved["running"]["samples"] == 0 and saved["world"] == 1
    assert [len(rates) for rates in saved["firing_rates"]] == [3, 3]
    assert saved["average"]["n_averaged"] == 6  # one for each optimizer step


def test_a_resume_puts_back_all_that_is_saved(folder, tmp_path, one_thread):
    """A resume also restores random numbers: no network of sewsnn draws any in training, but a user's may."""
    saved = checkpoint.load(folder / checkpoint.NAME)
    saved["config"]["output"] = str(tmp_path)
    generator = torch.Generator().manual_seed(77)
    saved["rng"] = [{"cpu": generator.get_state(), "cuda": None}]
    saved |= {"epoch": 1, "step": 2, "samples": 1024, "seconds": 1000.5}
    saved["history"], saved["firing_rates"] = saved["history"][:1], saved["firing_rates"][:1]
    saved["running"] = {"samples": 1024, "loss": 2048.5, "top1": 99, "top5": 500, "seconds": 3.5, "waited": 0.25}
    saved["scaler"] = {**saved["scaler"], "scale": 1.0, "_growth_tracker": 5}
    for i, state in saved["optimizer"]["state"].items():
        state["momentum_buffer"].fill_(i)
    content = {key: saved[key] for key in checkpoint.KEYS}
    checkpoint.save(tmp_path / checkpoint.NAME, content)
    trainer = Trainer(from_dict(saved["config"]), resume=True)
    try:
        assert torch.equal(torch.get_rng_state(), generator.get_state())
        assert (trainer.epoch, trainer.step) == (1, 2) and trainer.history == saved["history"]
        assert trainer.rates == saved["firing_rates"] and trainer.sums.values(trainer.processes) == saved["running"]
        assert 1000.5 <= trainer.elapsed() < 1060
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, saved["model"][name]), name
        for name, value in trainer.stepper.average.state_dict().items():
            assert torch.equal(value, saved["average"][name]), name
        for i, state in trainer.optimizer.state_dict()["state"].items():
            assert (state["momentum_buffer"] == i).all()
        assert trainer.stepper.scaler.state_dict() == saved["scaler"]
        from sewsnn.train import state as states

        again = states.collect(trainer)
        assert again.keys() == checkpoint.KEYS and again["samples"] == 1024 and again["step"] == 2
        assert again["running"] == saved["running"] and again["seconds"] >= 1000.5
    finally:
        trainer.close()
