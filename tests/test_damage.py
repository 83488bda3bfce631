"""Damage of saved weights is noticed and named; what cannot be read for the moment is not taken for damaged."""

import errno
import io
import os
import random
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from runs import PROCESS, command

from sewsnn import files, models
from sewsnn.cli import main
from sewsnn.errors import CheckpointError, DamagedError, UserError
from sewsnn.train import checkpoint
from sewsnn.train.config import load_config
from sewsnn.train.loop import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(folder, "--epochs", "2", "--keep", "2", "--ema", "0.9")[3:]) == 0
    return folder


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def flipped(data, count, randoms):
    for _ in range(count):
        damaged = bytearray(data)
        damaged[randoms.randrange(len(data))] ^= 1 << randoms.randrange(8)
        yield damaged


def zeroed(data, count, randoms):
    for _ in range(count):
        first = randoms.randrange(len(data))
        length = min(randoms.randrange(1, 4096), len(data) - first)
        yield data[:first] + bytes(length) + data[first + length :]


def outcomes(contents, path, load, good):
    """How many of the damaged contents load as before, and how many are refused; none loads as anything else."""
    refused = equal = 0
    for content in contents:
        path.write_bytes(content)
        try:
            found = load(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert same(found, good)
            equal += 1
    return refused, equal


def test_no_flipped_bit_of_a_checkpoint_loads_as_another_value(finished, tmp_path):
    data, randoms = (finished / checkpoint.NAME).read_bytes(), random.Random(7)
    good = checkpoint.load(finished / checkpoint.NAME)
    damaged = [*flipped(data, 300, randoms), *zeroed(data, 40, randoms)]
    refused, _ = outcomes(damaged, tmp_path / "c.pt", checkpoint.load, good)
    assert refused > 200  # the others hit padding between records


def test_no_bit_of_a_small_file(tmp_path):
    """Two of each byte: headers, names, offsets and the central directory included."""
    good = {"a": torch.randn(5), "b": {"c": torch.arange(3), "d": ["text", 1.5, None]}}
    stream = io.BytesIO()
    torch.save(good, stream)
    data = stream.getvalue()
    everywhere = (
        data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :] for i in range(8 * len(data))
    )
    refused, _ = outcomes(everywhere, tmp_path / "c.pt", files.load_tensors, good)
    assert refused > len(data)


def test_files_without_checksums_load(tmp_path):
    """Of old torch, and of set_crc32_options(False): there is nothing to compare."""
    good = {"a": torch.randn(5)}
    torch.save(good, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(good, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pt", "without.pt"):
        assert same(files.load_tensors(tmp_path / name), good)
    cut = (tmp_path / "old.pt").read_bytes()[:-3]
    (tmp_path / "old.pt").write_bytes(cut)
    with pytest.raises(DamagedError, match=r"old\.pt is not a readable checkpoint"):
        files.load_tensors(tmp_path / "old.pt")


def test_safetensors_that_are_written_here_carry_a_checksum(tmp_path):
    net = models.create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3)
    path, randoms = tmp_path / "w.safetensors", random.Random(1)
    models.save_checkpoint(net, path, container="")
    data = path.read_bytes()

    def load(path):
        other = models.create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3)
        models.load_checkpoint(other, path)
        return dict(other.state_dict())

    damaged = [*flipped(data, 200, randoms), *zeroed(data, 20, randoms)]
    refused, _ = outcomes(damaged, path, load, dict(net.state_dict()))
    assert refused > 150


def test_every_reader_refuses_damage_by_name(finished, tmp_path, capsys):
    """resume, eval, export, convert-checkpoint, model.weights: one line each, and no file is written."""
    folder, bad = tmp_path / "run", tmp_path / "bad.pt"
    shutil.copytree(finished, folder)
    content = bytearray((folder / checkpoint.NAME).read_bytes())
    with zipfile.ZipFile(folder / checkpoint.NAME) as archive:
        name = next(i for i in archive.infolist() if "/data/" in i.filename and i.file_size > 100)
    content[name.header_offset + 300] ^= 16
    bad.write_bytes(content)
    (folder / checkpoint.NAME).write_bytes(content)
    config, out = str(folder / "config.yaml"), tmp_path / "out.pt2"
    for words, where in (
        (["train", config, "--output", str(folder), "--resume"], folder / checkpoint.NAME),
        (["train", config, "--output", str(tmp_path / "new"), "--model.weights", str(bad)], bad),
        (["eval", str(folder)], folder / checkpoint.NAME),
        (["eval", str(folder), "--average"], folder / checkpoint.NAME),
        (["eval", config, "--weights", str(bad)], bad),
        (["export", str(bad), str(out)], bad),
        (["convert-checkpoint", str(bad), str(out), "--to", "sewsnn"], bad),
    ):
        assert main(words) == 1, words
        error = capsys.readouterr().err
        assert (
            f"{where} is not a readable checkpoint (truncated or damaged): record" in error and error.count("\n") == 1
        )
    assert not out.exists() and not (tmp_path / "new" / checkpoint.NAME).exists()
    found, message = checkpoint.newest(folder)
    assert found["epoch"] == 2 and "going on from checkpoint-0002.pt instead" in message


@pytest.mark.parametrize("when", ["open", "read", "list"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_error_of_the_disk_is_no_damage(finished, tmp_path, monkeypatch, capsys, when, code):
    """Resuming stops; no older checkpoint takes the place of one that may be whole, and nothing is written."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    fail_once_opened(monkeypatch, folder / checkpoint.NAME, when, code)
    assert main(["train", str(finished / "config.yaml"), "--output", str(folder), "--resume=auto"]) == 1
    error = capsys.readouterr().err
    assert os.strerror(code) in error and str(folder) in error and "damaged" not in error and error.count("\n") == 1
    monkeypatch.undo()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def fail_once_opened(monkeypatch, path, when, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    if when == "list":
        monkeypatch.setattr(os, "listdir", fail)
        return
    opened = files.open_regular

    def open_regular(asked):
        if os.fspath(asked) != os.fspath(path):
            return opened(asked)
        if when == "open":
            fail()
        file = opened(asked)

        class Broken(io.RawIOBase):
            def readable(self):
                return True

            def seekable(self):
                return True

            def seek(self, *place):
                return file.seek(*place)

            def tell(self):
                return file.tell()

            def readinto(self, buffer):
                return fail() if file.tell() > 20_000 else file.readinto(buffer)

        return io.BufferedReader(Broken(), 512)

    monkeypatch.setattr(files, "open_regular", open_regular)


def test_links_to_nothing_hold_a_run(finished, tmp_path):
    """The disk with the checkpoint may come back: nothing is begun over the link."""
    folder = tmp_path / "run"
    folder.mkdir()
    for target in ("checkpoint.pt", tmp_path / "gone" / "checkpoint.pt"):
        (folder / checkpoint.NAME).symlink_to(target)
        assert checkpoint.holds_run(folder)
        with pytest.raises(UserError, match=r"checkpoint\.pt"):
            checkpoint.newest(folder)
        (folder / checkpoint.NAME).unlink()


def test_no_link_is_left_after_a_resume_at_an_epochs_end(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint.keep(folder, 2, 2, best=True)
    checkpoint.keep(folder, 2, 2, best=True)  # links to the same file: rename does nothing
    assert not list(folder.glob(".*"))
    assert os.path.samefile(folder / "best.pt", folder / checkpoint.NAME)
    Trainer(load_config(folder / "config.yaml", {"output": str(folder)}), resume=True)
    assert not list(folder.glob(".*.link"))


def test_paths_that_are_not_there(tmp_path, capsys):
    nope = str(tmp_path / "nope")
    for words in (["eval", nope], ["export", nope, f"{nope}.pt2"], ["convert-checkpoint", nope, "x", "--to", "sewsnn"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert f"there is no folder or file {nope}" in error or f"there is no checkpoint {nope}" in error


def test_too_little_memory_is_no_damage(tmp_path):
    """In a process that may have no more: the file is whole, and nothing says that it is damaged."""
    torch.save({"model": {"w": torch.zeros(2**27)}}, tmp_path / "large.pt")
    code = (
        "import resource, sys, sewsnn\n"
        "from sewsnn.cli import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))\n"
        f"sys.exit(main(['convert-checkpoint', {str(tmp_path / 'large.pt')!r}, 'out', '--to', 'sewsnn']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **PROCESS)
    assert done.returncode == 1 and "memory" in done.stderr and "damaged" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
