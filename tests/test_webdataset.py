"""WebDataset shards: sewsnn reads shards of the webdataset library and vice versa; the index matches the shards."""

import io
import os
import tarfile

import jpeg_tree
import numpy as np
import pytest
import torch
from test_imagenet import equal, source

from sewsnn.data.imagenet import open_images
from sewsnn.data.preparing import prepare
from sewsnn.data.shards import ShardImages, find_shards, pack, places
from sewsnn.errors import DataError

jpeg_tree.need_torchvision()
jpeg_tree.need("webdataset", "SEWSNN_REQUIRE_TORCHVISION")


@pytest.fixture
def shards(tmp_path):
    """Shards of the webdataset library: 20 training images in shards of 8, and 6 test images in one shard."""
    import webdataset

    folder = tmp_path / "shards"
    folder.mkdir()
    for split, count in (("train", 20), ("val", 6)):
        pattern = str(folder / f"{split}-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=8, verbose=0) as writer:
            for i in range(count):
                suffix = ("jpg", "jpeg", "JPEG")[i % 3]
                meta = {"json": {"label": i % 3}} if i % 2 else {}
                writer.write(
                    {"__key__": f"part.1/{split}{i:04d}", suffix: jpeg_tree.sample(i % 3, i), "cls": i % 3, **meta}
                )
    return folder


def test_shards_of_the_library_are_read(shards):
    train, val = open_images(str(shards))
    assert (len(train), len(val)) == (20, 6)
    for images in (train, val):
        for i in range(len(images)):
            assert images.labels[i] == i % 3 and images.read(i) == jpeg_tree.sample(i % 3, i)
    assert train.path(9) == f"{shards}/train-000001.tar:part.1/train0009"


def test_order_shares_and_resumption_are_those_of_a_folder(shards):
    s = source(shards)
    whole = list(s.train_batches(1))
    assert equal(whole[2:], s.train_batches(1, 2)) and equal(whole, source(shards, workers=2).train_batches(1))
    order = torch.randperm(20, generator=s.options.generator(1)).tolist()
    assert torch.cat([y for _, y in whole]).tolist() == [i % 3 for i in order] and s.num_classes == 3
    halves = [torch.cat([y for _, y in source(shards, world=2, rank=r).test_batches()]).tolist() for r in (0, 1)]
    assert halves == [[0, 1, 2], [0, 1, 2]]


def test_the_library_reads_shards_that_are_prepared(tmp_path):
    import webdataset

    tree = jpeg_tree.make_tree(tmp_path / "tree")
    (tree / "train" / jpeg_tree.CLASSES[0] / "with.dots.jpg").write_bytes(jpeg_tree.sample(0, 50))
    report = prepare("imagenet", tree, tmp_path / "out", workers=2, size=40, per_shard=5)
    assert "22 training and 9 test images (22 resized, 9 copied, 0 kept)" in report
    found = find_shards(tmp_path / "out")
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": [f"train-{i:06d}.tar" for i in range(5)],
        "val": [f"val-{i:06d}.tar" for i in range(2)],
    }
    counts = {}
    for split, paths in found.items():
        stream = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
        samples = list(stream.decode("pil").to_tuple("__key__", "jpg;png", "cls"))
        counts[split] = np.bincount([label for *_, label in samples]).tolist()
        ours = dict(zip(("train", "val"), open_images(str(tmp_path / "out")), strict=True))[split]
        assert [key for key, *_ in samples] == [os.fsdecode(bytes(key)) for key in ours.keys]
        assert [label for *_, label in samples] == ours.labels.tolist()
        assert all(min(image.size) <= 40 for _, image, _ in samples)
        assert sorted(ours.labels.tolist()) != ours.labels.tolist()  # the order is random
    assert counts == {"train": [8, 7, 7], "val": [3, 3, 3]}
    again = prepare("imagenet", tree, tmp_path / "out", workers=1, size=40, per_shard=5)
    assert "(0 resized, 0 copied, 31 kept)" in again
    assert sum(len(y) for _, y in source(tmp_path / "out").train_batches(0)) == 22


def test_the_index_is_kept_and_made_anew_where_shards_changed(shards, monkeypatch):
    calls = []
    monkeypatch.setattr("sewsnn.data.shards.places", lambda shard: calls.append(shard.name) or places(shard))
    first = open_images(str(shards))[0]
    assert sorted(calls) == ["train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]
    calls.clear()
    again = open_images(str(shards))[0]
    assert not calls and again.labels.tolist() == first.labels.tolist() and again.read(13) == first.read(13)
    (shards / "train-000001.tar").write_bytes(pack([("only", jpeg_tree.sample(2, 77), "jpg", 2)]))
    changed = open_images(str(shards))[0]
    assert len(calls) == 3 and len(changed) == 8 + 1 + 4 and changed.read(8) == jpeg_tree.sample(2, 77)
    (shards / "train-000002.tar").unlink()
    assert len(open_images(str(shards))[0]) == 9
    for damage in (b"", b"PK\x03\x04", (shards / ".train.index.npz").read_bytes()[:-200]):
        (shards / ".train.index.npz").write_bytes(damage)
        assert len(open_images(str(shards))[0]) == 9
    open_images(str(shards))
    whole = dict(np.load(shards / ".train.index.npz"))
    for name, change in (
        ("shard", lambda c: c + 99),
        ("shard", lambda c: c - 50),
        ("offset", lambda c: c * 1.5),
        ("offset", lambda c: c + 10**9),
        ("size", lambda c: c + 2**60),
        ("size", lambda c: np.stack([c, c], 1)),
        ("label", lambda c: c.astype("U9")),
        ("label", lambda c: c + 10**6),
        ("key", lambda c: np.arange(len(c))),
    ):
        np.savez(shards / ".train.index.npz", **whole | {name: change(whole[name])})
        images = open_images(str(shards))[0]
        assert [images.read(i) for i in range(9)] == [first.read(i) for i in range(8)] + [jpeg_tree.sample(2, 77)]


def test_without_a_place_for_it_the_index_is_made_each_time(shards, monkeypatch, capsys):
    from sewsnn.errors import UserError

    def refuse(path, write):
        raise UserError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr("sewsnn.data.shards.write_atomic", refuse)
    assert len(open_images(str(shards))[0]) == 20
    assert (
        "cannot save the index of the shards, so the next run builds it again: cannot write" in capsys.readouterr().err
    )
    assert not list(shards.glob(".*"))


def tar(*members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file.getvalue()


IMAGE = jpeg_tree.sample(1, 1)
GOOD = pack([("a", IMAGE, "jpg", 1), ("b", IMAGE, "jpg", 2)])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "train-000000.tar is damaged, or not an uncompressed tar file"),
        (b"\x1f\x8b" + bytes(2000), "is damaged, or not an uncompressed tar file"),
        (GOOD[: len(GOOD) // 2], "train-000000.tar is (truncated|damaged)"),
        (GOOD[:512], "train-000000.tar is (truncated|damaged)"),
        (GOOD[: 2 * (512 + -(-len(IMAGE) // 512) * 512)][:-600], "train-000000.tar is (truncated|damaged)"),
        (GOOD.replace(b"b.jpg", b"\xff" * 5), r"is truncated or damaged at byte [\d,]+"),
        (tar(("a.jpg", IMAGE)), r"sample a has no label \(.cls\); it has .jpg"),
        (tar(("a.cls", b"3"), ("a.txt", b"3")), r"sample a has no image \(.jpg, .jpeg, .png\); it has .cls, .txt"),
        (tar(("a.jpg", IMAGE), ("a.cls", b"cat")), r"label of sample a must be a whole number >= 0, got b'cat'"),
        (tar(("a.jpg", IMAGE), ("a.cls", b"-1")), r"label of sample a must be a whole number >= 0, got b'-1'"),
        (tar(("a.jpg", IMAGE), ("a.cls", b"9" * 23)), r"label of sample a must be a whole number >= 0, got b'999"),
        (tar(("a.jpg", IMAGE), ("a.cls", b"1_0")), r"label of sample a must be a whole number >= 0, got b'1_0'"),
        (tar(("__index__", b"")), "train-000000.tar holds no samples"),
    ],
    ids=[
        "empty",
        "gzip",
        "half",
        "header",
        "cut",
        "garbage",
        "no-label",
        "no-image",
        "text",
        "negative",
        "huge",
        "python",
        "none",
    ],
)
def test_damaged_shards_are_named(shards, content, message):
    (shards / "train-000000.tar").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_images(str(shards))
    assert "train-000000.tar" in str(caught.value)


def test_each_cut_of_a_shard_is_noticed(tmp_path):
    """A shard that is cut at any byte before its end mark is an error: no image may be lost silently."""
    path = tmp_path / "train-000000.tar"
    end = len(GOOD.rstrip(b"\0")) // 512 * 512 + 512
    for length in range(1, end, 191):
        path.write_bytes(GOOD[:length])
        with pytest.raises(DataError, match=r"train-000000.tar"):
            places(path)


def test_names_of_shards(tmp_path):
    names = ["imagenet1k-train-0001.tar", "imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "other.tar"]
    for name in (*names, ".train-000000.tar", "train-1.tar.gz", "retrain-000.tar"):
        (tmp_path / name).write_bytes(GOOD)
    found = find_shards(tmp_path)
    assert [path.name for path in found["train"]] == sorted(names[:2]) and len(found["val"]) == 1
    (tmp_path / names[2]).unlink()
    with pytest.raises(DataError, match=r"has no val shards; expected val-000000.tar"):
        open_images(str(tmp_path))
    (tmp_path / "val-0.tar").write_bytes(pack([("a", IMAGE, "jpg", 3)]))
    with pytest.raises(DataError, match="val has the label 3, but the largest label in train is 2"):
        open_images(str(tmp_path))


def test_shards_that_are_not_there_or_there_twice(tmp_path, capsys):
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        (tmp_path / name).write_bytes(GOOD)
    find_shards(tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / "train-4.tar").write_bytes(GOOD)
    find_shards(tmp_path)
    assert "2 of the train shards 0 to 4 are missing" in capsys.readouterr().err
    (tmp_path / "validation-0.tar").write_bytes(GOOD)
    with pytest.raises(DataError, match="shards of val and of validation, so images would count twice"):
        find_shards(tmp_path)


def test_damaged_images_in_shards_are_named(shards):
    images = ShardImages(find_shards(shards)["train"], shards, "train")
    path = shards / "train-000001.tar"
    before, data = os.stat(path), bytearray(path.read_bytes())
    data[images.offset[9] : images.offset[9] + 300] = bytes(300)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"train-000001.tar:part.1/train0009 is not a JPEG"):
        list(source(shards).train_batches(0))
    s = source(shards, on_corrupt="skip", workers=1)
    assert sum(len(y) for _, y in s.train_batches(0)) == 20
    assert list(s.corrupt) == [f"{path}:part.1/train0009"]
