"""Files that cannot be read now are not damaged: commands stop with the system's reason and write nothing."""

import builtins
import errno
import io
import os
import shutil

import numpy as np
import pytest
import small_run
import torch
from small_run import CHECKPOINT, error_of

from sewsnn import files, models
from sewsnn.data import cifar10, event_store, image_folder, resizing, shards
from sewsnn.data.event_store import Sample
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import CheckpointError, DamagedError, DataError, UnreadableError, UserError
from sewsnn.train import checkpoint, metrics

KINDS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ETIMEDOUT, errno.ELOOP]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def failing(monkeypatch):
    """Makes calls of the system fail for a path, because root never lacks a permission."""

    def fail(path, kind, calls=("open", "stat", "lstat", "listdir", "scandir")):
        def patched(call):
            def asked(of, *args, **kwargs):
                if not isinstance(of, int) and os.fspath(of) == os.fspath(path):
                    raise OSError(kind, os.strerror(kind), str(path))
                return call(of, *args, **kwargs)

            return asked

        for name in calls:
            monkeypatch.setattr(os, name, patched(getattr(os, name)))
        if "open" in calls:
            for module in (builtins, io):
                monkeypatch.setattr(module, "open", patched(module.open))

    return fail


class Failing:
    """A file with reads that fail after some time."""

    def __init__(self, file, reads, kind):
        self.file, self.reads, self.kind = file, reads, kind

    def readinto(self, block):
        self.reads -= 1
        if self.reads < 0:
            raise OSError(self.kind, os.strerror(self.kind))
        return self.file.readinto(block)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", KINDS, ids=errno.errorcode.get)
def test_auto_does_not_go_on_from_an_older_one(kind, folder, failing, capsys, monkeypatch):
    before = contents(folder)
    failing(folder / CHECKPOINT, kind)
    status, out, err = small_run.resume(folder, "--resume=auto", capsys)
    monkeypatch.undo()
    assert status == 1 and "resumed" not in out
    assert err == f"sewsnn: error: cannot read the checkpoint {folder / CHECKPOINT}: {os.strerror(kind)}\n"
    assert contents(folder) == before


def test_a_read_that_fails_is_no_damage_at_any_byte(run, tmp_path, monkeypatch):
    """torch raises errors of its own for this, also for its old format."""
    content = torch.load(run / CHECKPOINT, weights_only=True)
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    open_regular = files.open_regular
    for name in ("zip.pt", "old.pt"):
        reads, done = 0, False
        while not done:
            monkeypatch.setattr(files, "open_regular", lambda path, n=reads: Failing(open_regular(path), n, errno.EIO))
            try:
                files.read_tensors(tmp_path / name)
                done = True
            except CheckpointError as error:
                assert not isinstance(error, DamagedError)
                assert str(error) == f"cannot read the checkpoint {tmp_path / name}: Input/output error"
            reads += 1
        assert reads > 3


def test_too_little_memory_is_no_damage(run, folder, capsys, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    for problem in (load, lambda *_, **__: bytearray(2**62)):
        monkeypatch.setattr(torch, "load", problem)
        for how in ("--resume", "--resume=auto"):
            status, _, err = small_run.resume(folder, how, capsys)
            assert (
                status == 1
                and err == f"sewsnn: error: not enough memory to load the checkpoint {folder}/checkpoint.pt\n"
            )


def test_a_folder_that_cannot_be_read_holds_what_nobody_knows(folder, failing, capsys, monkeypatch):
    """A folder that cannot be read does not count as empty, and no run starts in it."""
    before = contents(folder)
    failing(folder, errno.EIO, ("listdir", "scandir"))
    for how in ("--resume=auto", "--epochs=2"):
        status, _, err = small_run.resume(folder, how, capsys)
        assert status == 1 and err == f"sewsnn: error: cannot read the folder {folder}: Input/output error\n"
    for ask in (checkpoint.newest, checkpoint.kept, checkpoint.holds_run):
        with pytest.raises(UserError, match="cannot read the folder"):
            ask(folder)
    monkeypatch.undo()
    assert contents(folder) == before


def test_a_link_to_what_is_gone_is_a_checkpoint(folder, capsys):
    """A link with a missing target counts as a checkpoint, because its disk may come back."""
    (folder / CHECKPOINT).unlink()
    (folder / CHECKPOINT).symlink_to(folder / "nowhere" / "c.pt")
    status, _, err = small_run.resume(folder, "--resume=auto", capsys)
    assert (
        status == 1
        and f"cannot read the checkpoint {folder / CHECKPOINT}: it is a link to a file that does not exist" in err
    )
    for path in folder.glob("*.*"):
        if path.name != CHECKPOINT and path.is_file():
            path.unlink()
    assert checkpoint.holds_run(folder)


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.yaml", ""])
def test_eval_says_the_reason(name, run, failing, capsys):
    failing(run / name if name else run, errno.EACCES)
    assert "Permission denied" in error_of(["eval", run], capsys)


def test_weights_of_any_kind(run, tmp_path, failing, capsys):
    pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    model = models.create_model("sew_resnet", blocks=[1], widths=[4])
    for name in ("c.pt", "c.safetensors"):
        models.save_checkpoint(model, tmp_path / name)
        failing(tmp_path / name, errno.ESTALE)
        with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*Stale file handle") as error:
            models.load_checkpoint(model, tmp_path / name)
        assert not isinstance(error.value, DamagedError)


def test_a_target_that_may_be_there_is_not_overwritten(run, tmp_path, failing, capsys, monkeypatch):
    """Without --force it is not overwritten: a file that cannot be examined may exist."""
    for words in (
        ["convert-checkpoint", run / CHECKPOINT, "OUT", "--to", "authors"],
        ["export", run / CHECKPOINT, "OUT"],
    ):
        out = tmp_path / "out.pt2"
        out.write_text("precious")
        failing(out, errno.ESTALE, ("stat", "lstat"))
        assert f"cannot read {out}: Stale file handle" in error_of([out if w == "OUT" else w for w in words], capsys)
        monkeypatch.undo()
        assert out.read_text() == "precious"


def test_the_list_of_corrupt_files_is_not_begun_anew(tmp_path, failing):
    metrics.write_corrupt(tmp_path / "corrupt.txt", {"a"})
    failing(tmp_path / "corrupt.txt", errno.EIO, ("open",))
    with pytest.raises(UserError, match=r"cannot read .*corrupt\.txt: Input/output error"):
        metrics.write_corrupt(tmp_path / "corrupt.txt", {"b"})


# ---- data


def test_prepared_events(tmp_path, failing):
    """The error distinguishes a missing file from one that cannot be read."""
    with pytest.raises(UnreadableError) as error:
        event_store.read_sample(tmp_path, Sample("a.npy", 0, "", "a", 1, 0))
    assert error.value.missing
    for name in ("a.npy", event_store.INDEX):
        (tmp_path / name).write_bytes(b"")
        failing(tmp_path / name, errno.EIO)
    with pytest.raises(UnreadableError, match=r"a\.npy: Input/output error"):
        event_store.read_sample(tmp_path, Sample("a.npy", 0, "", "a", 1, 0))
    with pytest.raises(UnreadableError, match="Input/output error"):
        event_store.read_index(tmp_path)


def test_an_index_that_cannot_be_read_is_not_made_again(tmp_path, failing):
    from sewsnn.data import prepare_events

    (tmp_path / event_store.INDEX).write_text("{}")
    prepare_events._Journal(tmp_path, "cifar10_dvs", tmp_path).close()
    assert prepare_events._same_set(tmp_path, "cifar10_dvs", tmp_path) is None  # damaged: it is
    failing(tmp_path / event_store.INDEX, errno.EIO)
    with pytest.raises(UnreadableError, match="Input/output error"):
        prepare_events._same_set(tmp_path, "cifar10_dvs", tmp_path)


def test_images(tmp_path, failing):
    for name in ("a.json", "a.tar", "a.jpg", "a.bin"):
        (tmp_path / name).write_bytes(b"x")
        failing(tmp_path / name, errno.EACCES)
    for read in (
        lambda: image_folder.read_json(tmp_path / "a.json"),
        lambda: shards.places(tmp_path / "a.tar"),
        lambda: resizing.is_whole(str(tmp_path / "a.jpg")),
        lambda: cifar10._records(tmp_path / "a.bin"),
    ):
        with pytest.raises(UnreadableError, match="Permission denied"):
            read()
    assert not resizing.is_whole(str(tmp_path / "b.jpg"))


def test_an_image_in_a_shard(tmp_path, failing):
    (tmp_path / "train-0.tar").write_bytes(shards.pack([("a", b"image", "jpg", 0)]))
    images = shards.ShardImages([tmp_path / "train-0.tar"], tmp_path, "train")
    failing(tmp_path / "train-0.tar", errno.EIO, ("open",))
    with pytest.raises(UnreadableError, match=r"train-0\.tar:a: Input/output error"):
        images.read(0)


def test_a_shard_that_cannot_be_read_is_not_written_again(tmp_path, failing):
    from sewsnn.data import prepare_imagenet

    shard = tmp_path / "train-0.tar"
    shard.write_bytes(shards.pack([("a", b"image", "jpg", 0)]))
    failing(shard, errno.EIO, ("open",))
    (done,) = prepare_imagenet._fill_shard(str(shard), [("a", str(tmp_path / "a.jpg"), 0)], 32)
    assert done.kind == "failed" and "Input/output error" in done.reason


class Samples:
    """Ten files; one of them cannot be read."""

    def __init__(self, path, kind):
        self.path, self.kind = path, kind

    def __len__(self):
        return 10

    def load(self, index, seed):
        if index == 3:
            try:
                raise OSError(self.kind, os.strerror(self.kind))
            except OSError as error:
                raise UnreadableError(f"cannot read {self.path}: {error.strerror}", self.path) from None
        return torch.zeros(1), index


@pytest.mark.parametrize("workers", [0, 1])
def test_no_io_error_is_skipped_in_training(workers):
    """This also holds with ``on_corrupt: skip``; a file that no longer exists is left out."""
    options = Options(batch_size=5, seed=0, on_corrupt="skip", workers=workers)

    def source(kind):
        samples = Samples("x.jpg", kind)
        return LoadedSource(samples, samples, 10, 1, False, options)

    for batches in (source(errno.EIO).train_batches(0), source(errno.EIO).test_batches()):
        with pytest.raises(DataError, match=r"^cannot read x\.jpg: Input/output error$"):
            list(batches)
    gone = source(errno.ENOENT)
    assert np.sum([len(y) for _, y in gone.test_batches()]) == 9 and list(gone.corrupt) == ["x.jpg"]
