"""Which folders continue a run, which runs would be overwritten, and which settings a resume may change."""

from types import SimpleNamespace

import pytest

from sewsnn.errors import CheckpointError, UserError
from sewsnn.train import checkpoint, metrics, state
from sewsnn.train.config import from_dict


@pytest.mark.parametrize("file, text", [("result.json", "{}"), ("metrics.csv", "epoch\n0\n1\n")])
def test_either_kind_of_result_without_a_checkpoint_is_kept(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match="holds the results of a run but no checkpoint"):
        state.find(tmp_path, "auto")
    assert (tmp_path / file).read_text() == text


def test_a_table_of_one_epoch_may_be_older_than_the_first_checkpoint(tmp_path):
    for text, rows in (("epoch\n", 0), ("epoch\n0\n", 1)):
        (tmp_path / "metrics.csv").write_text(text)
        assert metrics.rows_in(tmp_path / "metrics.csv") == rows and state.find(tmp_path, "auto") == (None, "")
    assert metrics.rows_in(tmp_path / "none.csv") == 0


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt", "config.yaml", "checkpoint-0003.pt"])
def test_a_new_run_does_not_begin_where_one_is(name, tmp_path):
    assert state.find(tmp_path, False) == (None, "") == state.find(tmp_path, "auto")
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="already holds a run"):
        state.find(tmp_path, False)


CONFIG = {
    "data": {"batch_size": 12},
    "train": {"epochs": 8, "accumulate": 2},
    "schedule": {"name": "step"},
    "optimizer": {"lr": 0.1},
}


def check(tmp_path, world=1, saved_epoch=5, before=CONFIG, **changes):
    now = {name: {**CONFIG.get(name, {}), **changes.get(name, {})} for name in (*CONFIG, "model")}
    saved = {"config": from_dict(before).to_dict(), "world": 2, "epoch": saved_epoch}
    state.check_same(saved, from_dict(now), world, tmp_path)


def test_batches_may_be_cut_otherwise_if_a_step_takes_as_many_samples(tmp_path):
    """12 samples, 2 batches, 2 processes: 48 samples."""
    for world, size, accumulate in ((2, 12, 2), (1, 24, 2), (4, 12, 1), (3, 8, 2), (1, 12, 4), (2, 24, 1)):
        check(tmp_path, world, data={"batch_size": size}, train={"accumulate": accumulate})
    for world, size, accumulate in ((2, 24, 2), (1, 24, 1), (2, 12, 1)):
        with pytest.raises(CheckpointError, match=r"batch_size|accumulate") as error:
            check(tmp_path, world, data={"batch_size": size}, train={"accumulate": accumulate})
        assert ("batch_size" in str(error.value)) == (size != 12)
    for world in (1, 4):  # with the same settings torchrun may change the number of processes
        check(tmp_path, world)


def test_more_epochs_or_fewer_unless_the_past_depended_on_them(tmp_path):
    for epochs in (5, 7, 9):
        check(tmp_path, train={"epochs": epochs})
    with pytest.raises(CheckpointError, match=r"train\.epochs"):
        check(tmp_path, train={"epochs": 4})
    cosine = CONFIG | {"schedule": {"name": "cosine"}}
    with pytest.raises(CheckpointError, match=r"\(train\.epochs\)"):
        check(tmp_path, before=cosine, schedule={"name": "cosine"}, train={"epochs": 9})


@pytest.mark.parametrize("key, value", [("optimizer.lr", 0.2), ("model.T", 8), ("train.ema", 0.5), ("data.flip", True)])
def test_settings_that_change_the_mathematics_do_not_change(key, value, tmp_path):
    part, name = key.split(".")
    with pytest.raises(CheckpointError, match=rf"\({key}\)"):
        check(tmp_path, **{part: {name: value}})


def test_what_does_not_touch_the_mathematics_may_change(tmp_path):
    check(tmp_path, data={"root": "/elsewhere", "workers": 3}, train={"keep": 2, "log_steps": 9, "checkpoint_steps": 7})


def test_a_checkpoint_is_kept_under_the_name_of_its_epoch_and_of_the_best(tmp_path):
    """Only the newest ones stay, and those of later epochs; best.pt is the last one that was marked as best."""
    for epoch in (1, 2, 9, 3, 4):
        (tmp_path / checkpoint.NAME).write_text(f"epoch {epoch}")
        checkpoint.keep(tmp_path, epoch, 2, best=epoch == 3)
        (tmp_path / checkpoint.NAME).unlink()
    assert [path.name for path in checkpoint.kept(tmp_path)] == [f"checkpoint-000{e}.pt" for e in (9, 4, 3)]
    assert all(path.read_text() == f"epoch {int(path.stem[-4:])}" for path in checkpoint.kept(tmp_path))
    assert (tmp_path / checkpoint.BEST).read_text() == "epoch 3"
    assert [path.name for path in checkpoint.others(tmp_path)][-1] == checkpoint.BEST
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("accuracies, best", [([0.5, 0.4], False), ([0.5, 0.5], False), ([0.4, 0.5], True)])
def test_the_best_is_the_first_of_the_highest_accuracies(accuracies, best, monkeypatch, tmp_path):
    from sewsnn.train.loop import Trainer

    seen = []
    monkeypatch.setattr(checkpoint, "keep", lambda *arguments: seen.append(arguments))
    history = [{"test_accuracy": accuracy} for accuracy in accuracies]
    config = SimpleNamespace(train=SimpleNamespace(keep=3))
    Trainer._keep(SimpleNamespace(epoch=2, history=history, folder=tmp_path, config=config))
    assert seen == [(tmp_path, 2, 3, best)]
