"""The DALI loader gives the batches of the torchvision loader up to rounding. Without a GPU it runs on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import jpeg_tree
import pytest
import torch
from test_imagenet import DAMAGES, batches, equal, source

from sewsnn.data.dali import DaliSource
from sewsnn.data.imagenet import Images
from sewsnn.data.preparing import prepare
from sewsnn.errors import DataError

FOLDER = Path(os.environ.get("SEWSNN_DALI") or Path(sys.prefix) / "dali")
jpeg_tree.need_torchvision()
jpeg_tree.need("nvidia.dali", "SEWSNN_REQUIRE_DALI", FOLDER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return jpeg_tree.make_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tmp_path):
    return jpeg_tree.make_tree(tmp_path / "tree")


def dali(root, **options):
    return source(root, loader="dali", **options)


def on_cpu(found):
    return [(x.cpu(), y) for x, y in found]


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_torchvision_loaders_batches(tree, part):
    """The same windows, flips and labels: the decoder's and the resizing's rounding is all that differs. A window that
    is one pixel off would differ by more: the images are noise of 60 levels."""
    theirs, ours = on_cpu(batches(dali(tree, workers=2), part)), list(batches(source(tree), part))
    for (x, y), (a, b) in zip(theirs, ours, strict=True):
        assert torch.equal(y, b) and x.dtype == torch.uint8 and x.shape == a.shape and x.is_contiguous()
        difference = (x.float() - a.float()).abs()
        assert difference.mean() < 0.5 and difference.max() <= 4


def test_the_comparison_would_notice_a_pixel(tree):
    (a, _), *_ = source(tree).test_batches()
    assert (a[..., 1:].float() - a[..., :-1].float()).abs().mean() > 3
    assert (a.float() - a.flip(-1).float()).abs().mean() > 3


def test_resumption_shares_and_threads_are_exact(tree):
    whole = on_cpu(dali(tree).train_batches(1))
    assert equal(whole[4:], on_cpu(dali(tree).train_batches(1, 4)))
    assert equal(whole, on_cpu(dali(tree, workers=3).train_batches(1)))
    halves = [on_cpu(dali(tree, batch_size=2, world=2, rank=r).train_batches(1)) for r in (0, 1)]
    for (x, y), parts in zip(whole, zip(*halves, strict=True), strict=False):
        if len(y) == 4:
            assert equal([(x, y)], [tuple(torch.cat(pair) for pair in zip(*parts, strict=True))])
    tests = [on_cpu(dali(tree, world=2, rank=r).test_batches()) for r in (0, 1)]
    assert sum(len(y) for share in tests for _, y in share) == 9


def test_batches_are_not_written_over(tree):
    """DALI reuses its memory, so the batches must be copies."""
    kept = list(dali(tree).train_batches(0))
    assert equal(on_cpu(kept), [(x.cpu().clone(), y) for x, y in dali(tree).train_batches(0)])


def test_it_can_be_left_in_the_middle(tree):
    for _ in range(3):
        found = dali(tree, workers=2).train_batches(0)
        next(found)
        found.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_do_as_with_torchvision(own_tree, damage):
    change, message = DAMAGES[damage]
    train = sorted((own_tree / "train").rglob("*.JPEG"))[4]
    test = sorted((own_tree / "val").rglob("*.JPEG"))[7]
    for path in (train, test):
        path.write_bytes(change(path.read_bytes()))
    for part, path in (("train", train), ("test", test)):
        with pytest.raises(DataError, match=f"{path.name}.*({message})"):
            list(batches(dali(own_tree), part))
    s, other = dali(own_tree, on_corrupt="skip"), source(own_tree, on_corrupt="skip")
    for part, count in (("train", 21), ("test", 8)):
        labels = [torch.cat([y for _, y in batches(loader, part)]) for loader in (s, other)]
        assert torch.equal(*labels) and len(labels[0]) == count
    assert s.corrupt == other.corrupt and set(s.corrupt) == {str(train), str(test)}


def test_a_batch_of_which_nothing_is_left_is_passed_by(own_tree):
    paths = sorted((own_tree / "val").rglob("*.JPEG"))
    for path in paths[4:8]:
        path.write_bytes(b"")
    s = dali(own_tree, on_corrupt="skip")
    assert [len(y) for _, y in s.test_batches()] == [4, 1] and len(s.corrupt) == 4
    for path in paths:
        path.write_bytes(b"")
    s = dali(own_tree, on_corrupt="skip")
    assert not list(s.test_batches()) and len(s.corrupt) == 9
    for path in (own_tree / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="16 samples in a row could not be read"):
        list(dali(own_tree, on_corrupt="skip").train_batches(0))


def damaged_inside(data: bytes) -> bytes:
    """The header and the end marker are intact, so only decoding finds the damage."""
    return data[:600] + b"\xff\xd8\xff\xc4\0" + data[700:]


def test_what_only_decoding_tells(own_tree):
    """DALI fails on a batch after it has prefetched, and does not name the file."""
    paths = sorted((own_tree / "train").rglob("*.JPEG"))
    clean = on_cpu(dali(own_tree).train_batches(0))
    for path in (paths[3], paths[17]):
        path.write_bytes(damaged_inside(path.read_bytes()))
    with pytest.raises(DataError, match=f"({paths[3].name}|{paths[17].name}) is a damaged image"):
        list(dali(own_tree).train_batches(0))
    s = dali(own_tree, on_corrupt="skip")
    found = on_cpu(s.train_batches(0))
    assert set(s.corrupt) == {str(paths[3]), str(paths[17])} and sum(len(y) for _, y in found) == 21
    order = torch.randperm(21, generator=s.options.generator(0)).tolist()
    touched = {order.index(i) // 4 for i in (3, 17)}
    for step, (before, after) in enumerate(zip(clean, found, strict=True)):
        assert equal([before], [after]) == (step not in touched)
    for start in range(6):  # which batches DALI makes does not depend on where the epoch begins
        again = dali(own_tree, on_corrupt="skip")
        assert equal(found[start:], on_cpu(again.train_batches(0, start)))


def test_batches_that_only_dali_cannot_make(tree, monkeypatch, capsys):
    """A batch is decoded without DALI, with a message; if this repeats, the run stops."""
    decoded, broken = DaliSource._decoded, []

    def breaks(self, samples, plan):
        for places in plan:
            if places in broken:
                raise RuntimeError("no such decoder")
            yield from decoded(self, samples, [places])

    monkeypatch.setattr(DaliSource, "_decoded", breaks)
    s = dali(tree)
    order = torch.randperm(21, generator=s.options.generator(0)).tolist()
    plan = [[(order[i], s._seed(0, order[i])) for i in s.options.share(step, 21)] for step in range(6)]
    broken += [plan[0], plan[3]]
    found, expected = on_cpu(s.train_batches(0)), list(source(tree).train_batches(0))
    assert equal([found[0], found[3]], [expected[0], expected[3]]) and len(found) == 6
    assert not equal([found[1]], [expected[1]])
    assert capsys.readouterr().err.count("DALI could not decode a batch, so Pillow decoded it: no such decoder") == 2
    broken += plan
    with pytest.raises(DataError, match="DALI cannot decode images that torchvision decodes: no such decoder"):
        list(dali(tree).train_batches(0))


def test_shards_and_prepared_folders(own_tree, tmp_path):
    prepare("imagenet", own_tree, tmp_path / "small", workers=1, size=36)
    prepare("imagenet", own_tree, tmp_path / "shards", workers=1, size=36, per_shard=6)
    for root in (tmp_path / "small", tmp_path / "shards"):
        for part in ("train", "test"):
            pairs = zip(batches(dali(root), part), batches(source(root), part), strict=True)
            assert all(
                torch.equal(y, b) and (x.cpu().float() - a.float()).abs().mean() < 0.5 for (x, y), (a, b) in pairs
            )


@pytest.mark.parametrize("options", [{"augment": "trivial"}, {"erase": 0.1}])
def test_what_it_cannot_do_is_said(tree, options):
    (key,) = options
    with pytest.raises(DataError, match=rf"data\.{key} is not available with data\.loader: dali"):
        dali(tree, **options)


def test_a_missing_dali_is_said_with_the_command(tree, tmp_path):
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from sewsnn.data import create_data
try:
    create_data("imagenet", batch_size=2, seed=0, root={str(tree)!r}, loader="dali")
except Exception as error:
    print(type(error).__name__, error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120).stdout
    assert out.startswith("UserError data.loader: dali needs NVIDIA DALI (No module named 'nvidia.dali'). ")
    assert out.endswith("pip install 'sewsnn[dali]', or set --data.loader torchvision\n")


def test_it_needs_no_more_than_encoded_images(tree):
    """A stand-in for any store of images."""
    from sewsnn.data.dali import EncodedSamples

    class Memory:
        labels = torch.tensor([5]).numpy()

        def __len__(self):
            return 1

        def path(self, index):
            return "memory"

        def read(self, index):
            return jpeg_tree.sample(0, 0)

    images: Images = Memory()
    (data, start, shape, flip), label = EncodedSamples(images, source(tree).options).load(0, 7)
    assert (
        label == 5 and bytes(data) == jpeg_tree.sample(0, 0) and start.shape == shape.shape == (2,) and not flip.shape
    )
