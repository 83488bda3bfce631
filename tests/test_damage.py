"""Every command that reads a checkpoint refuses a damaged one by name, and reports files that it cannot check."""

import contextlib
import random
import shutil
import struct
import zipfile

import pytest
import small_run
import torch
from small_run import CHECKPOINT, error_of

from sewsnn import archive, models
from sewsnn.cli import main
from sewsnn.errors import CheckpointError, DamagedError
from sewsnn.files import read_tensors, save_tensors
from sewsnn.models import safetensors
from sewsnn.train import checkpoint

FLIPS, STRETCHES, LONGEST = 300, 40, 200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("runs") / "run")


def damages(data, seed=0):
    """Copies with one bit flipped, and copies with a stretch of zeros."""
    draw = random.Random(seed)
    for _ in range(FLIPS):
        bit = draw.randrange(8 * len(data))
        yield data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    for _ in range(STRETCHES):
        start, length = draw.randrange(len(data)), draw.randrange(1, LONGEST)
        yield (data[:start] + bytes(length) + data[start + length :])[: len(data)]


def same(a, b):
    """Asserts equality bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def outcomes(read, whole, data, path):
    """Returns how many damaged copies are refused; asserts that all others give the original content."""
    refused = 0
    for content in damages(data):
        path.write_bytes(content)
        try:
            found = read(path)
        except DamagedError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert same(found, whole)
    return refused


def test_no_damaged_checkpoint_of_training_is_read(run, tmp_path):
    """Of 300 flipped bits and 40 zeroed stretches, none loads with a changed value, for a resume or as weights."""
    data = (run / CHECKPOINT).read_bytes()
    whole = checkpoint.load(run / CHECKPOINT)
    assert outcomes(checkpoint.load, whole, data, tmp_path / "c.pt") > 100

    def as_weights(path):
        model = models.create_model("sew_resnet", blocks=[1], widths=[4], in_channels=1, stem="small", num_classes=10)
        models.load_checkpoint(model, path)
        return dict(model.state_dict())

    assert outcomes(as_weights, as_weights(run / CHECKPOINT), data, tmp_path / "c.pt") > 100


def test_no_flipped_bit_changes_a_value(tmp_path):
    """Flips each bit of a small file, including headers and directory: the file is refused or its content unchanged."""
    whole = {"a": torch.arange(5.0), "b": torch.zeros(0), "c": torch.ones(3, dtype=torch.bfloat16), "x": [1, "two"]}
    save_tensors(tmp_path / "whole.pt", whole)
    data, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "c.pt"
    start = data.index(b"PK\1\2")  # the directory and the end; what is before, a seventh of
    for bit in [*range(0, 8 * start, 7), *range(8 * start, 8 * len(data))]:
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with contextlib.suppress(DamagedError):
            assert same(read_tensors(path).content, whole), bit


def test_no_truncated_checkpoint_is_read(tmp_path):
    """Neither in torch's format nor in its old one, which has no checksums."""
    whole = {"a": torch.arange(50.0), "b": torch.ones(3)}
    for old in (False, True):
        torch.save(whole, tmp_path / "whole.pt", _use_new_zipfile_serialization=not old)
        data = (tmp_path / "whole.pt").read_bytes()
        assert same(read_tensors(tmp_path / "whole.pt").content, whole)
        for length in [*range(0, len(data), 13), *range(len(data) - 300, len(data))]:
            (tmp_path / "c.pt").write_bytes(data[:length])
            with pytest.raises(DamagedError, match=r"c\.pt is not a readable checkpoint"):
                read_tensors(tmp_path / "c.pt")


def flipped(data, tensor):
    """Flips a bit of the first value of a tensor that is in the file once."""
    place = data.index(tensor.numpy().tobytes())
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


def test_every_command_refuses_damage(run, tmp_path, capsys):
    """A flipped bit of a weight: eval, its --weights and --average, export, convert-checkpoint, model.weights, resume;
    nothing is written."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    weight = checkpoint.load(run / CHECKPOINT)["model"]["fc.weight"]
    bad = folder / CHECKPOINT
    bad.unlink()  # it is a link
    bad.write_bytes(flipped((run / CHECKPOINT).read_bytes(), weight))
    before = {name: (folder / name).read_bytes() for name in small_run.names(folder) if name != "tensorboard"}
    for words in (
        ["eval", folder],
        ["eval", folder, "--average"],
        ["eval", run, "--weights", bad],
        ["export", bad, tmp_path / "net.pt2"],
        ["convert-checkpoint", bad, tmp_path / "out.pt", "--to", "authors"],
        ["train", small_run.CONFIG, "--output", tmp_path / "new", *small_run.WORDS, "--model.weights", bad],
        ["train", small_run.CONFIG, "--output", folder, *small_run.WORDS, "--resume"],
    ):
        err = error_of(words, capsys)
        assert f"{bad} is not a readable checkpoint" in err and "do not match their checksum" in err
    assert small_run.names(tmp_path) == ["run"]
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_auto_takes_the_next_older_one_and_says_so(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    weight = checkpoint.load(run / CHECKPOINT)["model"]["fc.weight"]
    for name in (CHECKPOINT, "checkpoint-0002.pt"):
        (folder / name).unlink()
        (folder / name).write_bytes(flipped((run / CHECKPOINT).read_bytes(), weight))
    status, out, err = small_run.resume(folder, "--resume=auto", capsys)
    assert status == 0, err
    assert f"{folder / CHECKPOINT} is not a readable checkpoint" in out and "resumed at epoch 2" in out
    assert "continuing from checkpoint-0001.pt instead" in out
    assert torch.equal(checkpoint.load(folder / CHECKPOINT)["model"]["fc.weight"], weight)


def test_files_without_checksums_are_said(run, tmp_path, capsys):
    """Without checksums (torch can omit them) damage cannot be detected: the file is read, with a remark."""
    content = checkpoint.load(run / CHECKPOINT)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, tmp_path / "none.pt")
        save_tensors(tmp_path / "ours.pt", content)  # has them all the same
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "ours.pt").note == ""
    for name in ("none.pt", "old.pt"):
        found, note = checkpoint.read(tmp_path / name)
        assert (
            same(found, content) and note == f"{tmp_path / name} has no checksums, so damage in it cannot be detected"
        )
        capsys.readouterr()
        assert main(["eval", str(run), "--weights", str(tmp_path / name)]) == 0
        assert capsys.readouterr().err.startswith(f"sewsnn: note: {note}\n")
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(tmp_path / "none.pt", folder / CHECKPOINT)
    assert "has no checksums" in small_run.resume(folder, "--resume", capsys)[1]


def test_archives_that_torch_does_not_write(tmp_path):
    """Cases: compressed records, a record that occurs twice, one that exceeds the file."""
    save_tensors(tmp_path / "a.pt", {"a": torch.zeros(1000)})
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        records = {name: file.read(name) for name in file.namelist()}
    for name, method in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as file:
            for record, data in records.items():
                file.writestr(record, data)
    assert same(read_tensors(tmp_path / "stored").content, {"a": torch.zeros(1000)})
    with pytest.raises(CheckpointError, match=r"packed is not a readable checkpoint .* is compressed") as error:
        read_tensors(tmp_path / "packed")
    assert not isinstance(error.value, DamagedError)  # it is as it was written
    data = (tmp_path / "a.pt").read_bytes()
    entry = data.index(b"PK\1\2")
    for place, value, words in (
        (entry + 20, struct.pack("<II", 2**31, 2**31), "larger than the file"),
        (entry + 38, struct.pack("<I", 0x10), "is marked as a folder"),
        (entry + 42, struct.pack("<I", 2**31), "truncated, or its directory is damaged"),
        (len(data) - 2, b"\1\0", "the end of the file is damaged"),
    ):
        (tmp_path / "c.pt").write_bytes(data[:place] + value + data[place + len(value) :])
        with pytest.raises(DamagedError, match=words):
            read_tensors(tmp_path / "c.pt")


def test_large_archives_are_read_as_torch_writes_them(tmp_path):
    """Numbers of more than 32 bits are in an extra field, in a fixed order."""
    wide = struct.pack("<HHQQ", 1, 16, 2**33, 2**34)
    assert archive._wide(0xFFFFFFFF, 0xFFFFFFFF, 5, wide) == (2**34, 2**33, 5)
    assert archive._wide(7, 7, 0xFFFFFFFF, struct.pack("<HHB", 9, 1, 0) + struct.pack("<HHQ", 1, 8, 2**35)) == (
        7,
        7,
        2**35,
    )
    with pytest.raises(archive.Damage):
        archive._wide(7, 7, 0xFFFFFFFF, struct.pack("<HH", 1, 0))


def test_no_damaged_safetensors_file_of_ours_is_read(tmp_path):
    """Names, dtypes, shapes and values have a checksum; a file without one is read."""
    package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    state = {"a.weight": torch.randn(7, 3), "b": torch.tensor(3), "c": torch.zeros(0), "d": torch.ones(2).bfloat16()}
    path = tmp_path / "c.safetensors"
    data = safetensors.write(path, state)
    assert outcomes(lambda p: safetensors.read(p).content, state, data, path) > 200
    for renamed in (data.replace(b"a.weight", b"a.weighs"), data.replace(b'"BF16"', b'"F16" ')):
        path.write_bytes(renamed)
        with pytest.raises(DamagedError, match="the tensors do not"):
            safetensors.read(path)
    path.write_bytes(data)
    assert safetensors.read(path).note == "" and same(dict(sorted(package.load(data).items())), state)
    path.write_bytes(package.save(state))
    assert same(safetensors.read(path).content, state) and "has no checksums" in safetensors.read(path).note


def entry(name, shape, start, end, dtype="F32"):
    return f'"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}'


HEADERS = {  # all of files with eight bytes of values
    "overlap": [entry("a", 2, 0, 8), entry("b", 1, 4, 8)],
    "hole": [entry("a", 1, 0, 4), entry("b", 0, 8, 8)],
    "more": [entry("a", 1, 0, 4)],
    "shape": [entry("a", 3, 0, 8)],
    "beyond": [entry("a", 4, 0, 16)],
    "dtype": [entry("a", 16, 0, 8, "F4")],
    "metadata": ['"__metadata__":{"sewsnn.crc32":1}', entry("a", 2, 0, 8)],
    "checksum": ['"__metadata__":{"sewsnn.crc32":"x"}', entry("a", 2, 0, 8)],
}


@pytest.mark.parametrize("entries", HEADERS.values(), ids=HEADERS)
def test_safetensors_headers_that_contradict_the_file(entries, tmp_path):
    pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    header = f"{{{','.join(entries)}}}".encode()
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(DamagedError, match=r"c\.safetensors"):
        safetensors.read(tmp_path / "c.safetensors")
