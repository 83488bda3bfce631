"""ImageNet folders: the images of a batch, their crops, and the effect of damaged files."""

import subprocess
import sys
from pathlib import Path

import jpeg_tree
import pytest
import torch
from jpeg_tree import CLASSES

from sewsnn.cli import main
from sewsnn.data import create_data, crops
from sewsnn.data.imagenet import MEAN, STD
from sewsnn.errors import DataError, UserError
from sewsnn.train import checkpoint

jpeg_tree.need_torchvision()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return jpeg_tree.make_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tmp_path):
    return jpeg_tree.make_tree(tmp_path / "tree")


def source(root, **options):
    return create_data(
        "imagenet", **{"batch_size": 4, "seed": 3, "root": str(root), "image_size": 32, "resize": 36, **options}
    )


def equal(a, b) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(k, m) for (x, k), (y, m) in zip(a, b, strict=True)
    )


def reference(root, steps):
    """Returns torchvision's result for image i (in sorted order) and a seed."""
    from PIL import Image

    from sewsnn.data import vision

    v2 = vision.transforms()
    transform = v2.Compose([*(make(v2) for make in steps), v2.PILToTensor()])
    paths = sorted((root / "train").rglob("*.JPEG"))

    def load(index, seed):
        torch.manual_seed(seed)
        return transform(Image.open(paths[index]).convert("RGB"))

    return load


@pytest.mark.parametrize(
    "options, further",
    [
        ({}, []),
        ({"scale_min": 0.5}, []),
        ({"augment": "trivial"}, [lambda v2: v2.TrivialAugmentWide()]),
        ({"augment": "rand"}, [lambda v2: v2.RandAugment()]),
        ({"augment": "auto"}, [lambda v2: v2.AutoAugment()]),
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "none" if isinstance(o, dict) else "",
)
def test_training_images_are_torchvisions_of_the_seed(tree, options, further):
    scale = (options.get("scale_min", 0.08), 1.0)
    load = reference(
        tree,
        [lambda v2: v2.RandomResizedCrop(32, scale=scale), lambda v2: v2.RandomHorizontalFlip(), *further],
    )
    s = source(tree, **options)
    for epoch in (0, 2):
        order = torch.randperm(21, generator=s.options.generator(epoch)).tolist()
        images, labels = (torch.cat(part) for part in zip(*s.train_batches(epoch), strict=True))
        assert labels.tolist() == [i // 7 for i in order]
        assert images.dtype == torch.uint8 and images.shape == (21, 3, 32, 32)
        for image, index in zip(images, order, strict=True):
            assert torch.equal(image, load(index, s.options.seed_of(epoch + 1, index)))


def test_erased_pixels_are_the_mean(tree):
    plain, erased = source(tree), source(tree, erase=1.0)
    (a, _), (b, _) = next(plain.train_batches(0)), next(erased.train_batches(0))
    gone = (b == torch.tensor([124, 116, 104])[:, None, None]).all(1)
    parts = gone.float().mean((1, 2))
    assert parts.min() > 0.01 and parts.max() < 0.4
    assert torch.equal(a.movedim(1, -1)[~gone], b.movedim(1, -1)[~gone])
    assert erased.to_float(b).movedim(1, -1)[gone].abs().max() < 0.0095
    half = torch.cat([x for x, _ in source(tree, erase=0.5).train_batches(0)])
    whole = torch.cat([x for x, _ in plain.train_batches(0)])
    assert 4 < sum(not torch.equal(x, y) for x, y in zip(half, whole, strict=True)) < 17


def test_windows_are_torchvisions_for_all_shapes():
    """This includes images for which no random crop fits."""
    from sewsnn.data import vision

    v2 = vision.transforms()
    for height, width in ((1, 1), (1, 50), (60, 2), (7, 9), (9, 7), (3, 4), (500, 375), (33, 34)):
        for seed in range(40):
            torch.manual_seed(seed)
            expected = v2.RandomResizedCrop(8).make_params([torch.empty(3, height, width)])
            window = crops.random_window(height, width, 0.08, torch.Generator().manual_seed(seed))
            assert window._asdict() == expected


def test_test_images_are_resized_and_cut_once_each(tree):
    from PIL import Image

    from sewsnn.data import vision

    v2 = vision.transforms()
    transform = v2.Compose([v2.Resize(36), v2.CenterCrop(32), v2.PILToTensor()])
    expected = [transform(Image.open(path).convert("RGB")) for path in sorted((tree / "val").rglob("*.JPEG"))]
    for world, size in ((1, 4), (2, 4), (4, 1)):
        shares = [list(source(tree, world=world, rank=r, batch_size=size).test_batches()) for r in range(world)]
        images, labels = (torch.cat(part) for part in zip(*(batch for share in shares for batch in share), strict=True))
        assert torch.equal(images, torch.stack(expected)) and labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert [len(share) for share in shares] == [
            source(tree, world=world, rank=r, batch_size=size).test_steps for r in range(world)
        ]


def test_normalised_on_the_device(tree):
    s = source(tree)
    x, _ = next(s.test_batches())
    expected = (x.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    y = s.to_float(x)
    assert y.dtype == torch.float32 and torch.allclose(y.double(), expected, atol=3e-6)


def test_workers_share_and_resumption_change_nothing(tree):
    """The random number generator of the run also stays unchanged."""
    s = source(tree, augment="trivial", erase=0.5)
    before = torch.get_rng_state()
    whole = list(s.train_batches(1))
    assert equal(whole[4:], s.train_batches(1, 4))
    assert equal(whole, source(tree, augment="trivial", erase=0.5, workers=2).train_batches(1))
    assert torch.equal(before, torch.get_rng_state())
    shares = [
        list(source(tree, augment="trivial", erase=0.5, batch_size=2, world=2, rank=r).train_batches(1)) for r in (0, 1)
    ]
    for (x, y), parts in zip(whole, zip(*shares, strict=True), strict=False):
        if len(y) == 4:
            assert equal([(x, y)], [tuple(torch.cat(pair) for pair in zip(*parts, strict=True))])


DAMAGES = {
    "truncated": (lambda b: b[: len(b) // 2], "truncated|Truncated"),
    "empty": (lambda b: b"", "is empty"),
    "text": (lambda b: b"not an image", r"is not a JPEG or PNG image \(12 bytes\)"),
    "html": (lambda b: b"<html>404</html>" * 9, "is not a JPEG or PNG image"),
    "header": (lambda b: b[:20] + b"\xff" * 40 + b[60:], "image"),
    "tiff": (lambda b: b"II*\0" + bytes(100), "is not a JPEG or PNG image"),
}


@pytest.mark.parametrize("damage, workers", [*((damage, 0) for damage in DAMAGES), ("truncated", 2)])
def test_damaged_files_stop_or_are_left_out(own_tree, damage, workers):
    change, message = DAMAGES[damage]
    train = sorted((own_tree / "train").rglob("*.JPEG"))[4]
    test = sorted((own_tree / "val").rglob("*.JPEG"))[7]
    for path in (train, test):
        path.write_bytes(change(path.read_bytes()))
    for part, path in (("train", train), ("test", test)):
        with pytest.raises(DataError, match=f"{path.name}.*({message})") as caught:
            list(batches(source(own_tree, workers=workers), part))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    s = source(own_tree, on_corrupt="skip", workers=workers)
    assert sum(len(y) for _, y in s.train_batches(0)) == 21 and set(s.corrupt) == {str(train)}
    assert sum(len(y) for _, y in s.test_batches()) == 8 and set(s.corrupt) == {str(train), str(test)}


def test_images_of_other_kinds_are_not_left_out_without_a_word(own_tree):
    path = sorted((own_tree / "train").rglob("*.JPEG"))[4]
    path.rename(path.with_suffix(".webp"))
    with pytest.raises(DataError, match=rf"{path.stem}.webp: this image format is not supported"):
        source(own_tree)


def test_nothing_but_damage(own_tree, tmp_path, capsys):
    """Evaluation and ``data show`` report the samples that were left out in one line."""
    for path in (own_tree / "val").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:40])
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{name: imagenet, root: {own_tree}, image_size: 32, batch_size: 4, on_corrupt: skip}}\n"
        "model: {name: sew_resnet, blocks: [1], widths: [4], T: 2, stem: small}\n"
    )
    assert main(["data", "show", str(config), "--test", "--output", str(tmp_path / "x.png")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sewsnn: error: ") and err.count("\n") == 1


def test_other_data_is_noticed(own_tree, tmp_path, capsys, one_thread):
    """The data set stays the same if it is moved, but not with another class name or one sample less."""
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(
        "data: {name: imagenet, image_size: 32, batch_size: 4}\noptimizer: {lr: 0.01}\nschedule: {name: constant}\n"
        "model: {name: sew_resnet, blocks: [1], widths: [4], T: 2, stem: small}\n"
    )
    words = ["train", str(config), "--output", str(run), "--threads", "1"]
    assert main([*words, "--root", str(own_tree), "--epochs", "1"]) == 0
    moved = own_tree.rename(tmp_path / "moved")
    assert main([*words, "--root", str(moved), "--epochs", "2", "--resume"]) == 0
    old = checkpoint.load(run / "checkpoint.pt")
    assert old["data"]["train"] == 21 and old["data"]["test"] == 9
    for split in ("train", "val"):
        (moved / split / CLASSES[0]).rename(moved / split / "z")
    capsys.readouterr()
    assert main([*words, "--root", str(moved), "--epochs", "3", "--resume"]) == 1
    assert "was trained on other data (the class names differ)" in capsys.readouterr().err
    assert main(["eval", str(run), "--root", str(moved)]) == 0
    assert "was trained on classes with other names" in capsys.readouterr().err
    for split in ("train", "val"):
        (moved / split / "z").rename(moved / split / CLASSES[0])
    sorted((moved / "train").rglob("*.JPEG"))[3].unlink()
    assert main([*words, "--root", str(moved), "--epochs", "3", "--resume"]) == 1
    assert "(21 training samples then, 20 now)" in capsys.readouterr().err
    assert main(["eval", str(run), "--root", str(moved)]) == 0
    assert capsys.readouterr().err.count("was trained on") == 0
    # A checkpoint of an older version, without this key, continues.
    checkpoint.save(run / "checkpoint.pt", {key: old[key] for key in checkpoint.KEYS} | {"data": None})
    assert main([*words, "--root", str(moved), "--epochs", "3", "--resume"]) == 0


def batches(s, part):
    return s.train_batches(0) if part == "train" else s.test_batches()


def test_other_modes_and_damaged_exif_are_read_without_a_word(own_tree):
    """16-bit and palette PNGs, and a JPEG with invalid EXIF data; warnings are errors here."""
    import warnings

    import numpy as np
    from PIL import Image

    folder = own_tree / "train" / CLASSES[0]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(200))
    jpeg = jpeg_tree.sample(0, 0)
    (folder / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    Image.fromarray(np.full((40, 50), 7, np.uint8)).convert("P").save(folder / "b.PNG", transparency=b"\0\1\2")
    Image.fromarray(np.full((40, 50), 700, np.uint16)).save(folder / "c.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(y) for _, y in source(own_tree).train_batches(0)) == 24


def test_bombs_are_refused(own_tree, monkeypatch):
    import numpy as np
    from PIL import Image

    path = own_tree / "train" / CLASSES[1] / "bomb.JPEG"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    path.write_bytes(jpeg_tree.encoded(np.zeros((201, 200, 3), np.uint8)))
    with pytest.raises(DataError, match=r"bomb.JPEG has more than 40,000 pixels"):
        list(source(own_tree).train_batches(0))
    path.unlink()
    path = own_tree / "val" / CLASSES[1] / "thin.JPEG"
    path.write_bytes(jpeg_tree.encoded(np.zeros((2, 900, 3), np.uint8)))
    with pytest.raises(DataError, match=r"thin.JPEG would be resized to 16,200 x 36 pixels"):
        list(source(own_tree).test_batches())


def test_layouts_that_are_none_say_what_is_expected(own_tree, tmp_path):
    for path in sorted((own_tree / "val").rglob("*.JPEG")):
        path.rename(own_tree / "val" / path.name)
    for name in CLASSES:
        (own_tree / "val" / name).rmdir()
    (own_tree / "val" / ".DS_Store").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"val: it holds 9 images without class folders; expected one folder per class .*val/n0144"
    ):
        source(own_tree)
    for name in CLASSES[:2]:
        (own_tree / "val" / name).mkdir()
    with pytest.raises(DataError, match=f"class {CLASSES[2]} is in train but not in val"):
        source(own_tree)
    (own_tree / "val" / CLASSES[2]).mkdir()
    with pytest.raises(DataError, match=rf"{CLASSES[0]} has no image \(.jpeg, .jpg, .png\)"):
        source(own_tree)
    with pytest.raises(DataError, match=r"data\.root: .*nowhere does not hold ImageNet: expected train/<class>"):
        source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.root must name the folder"):
        create_data("imagenet", batch_size=2, seed=0)
    with pytest.raises(DataError, match=r"data\.shift is for small images"):
        source(own_tree, shift=2)


def test_files_that_are_no_images_are_not_in_the_way(own_tree):
    folder = own_tree / "train" / CLASSES[0]
    for name in (".DS_Store", "._n01440764_0.JPEG", "Thumbs.db", "list.txt"):
        (folder / name).write_bytes(b"x")
    assert sum(len(y) for _, y in source(own_tree).train_batches(0)) == 21


def test_a_missing_torchvision_is_said_with_the_command(tree, tmp_path):
    """Only the modules of ImageNet import torchvision."""
    for name, text in (("torchvision", "raise ModuleNotFoundError('No module', name='torchvision')"), ("ok", "")):
        (tmp_path / f"{name}.py").write_text(text)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from sewsnn.data import create_data
create_data("imagenet", batch_size=2, seed=0, generated=2)
create_data("digits", batch_size=2, seed=0)
assert "torchvision" not in sys.modules and "PIL" not in sys.modules
try:
    create_data("imagenet", batch_size=2, seed=0, root={str(tree)!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    version = torch.__version__.partition("+")[0]
    assert out.stdout == (
        f"UserError data: imagenet needs torchvision and Pillow. Run pip install 'sewsnn[imagenet]' torch=={version}\n"
    ), out.stderr


def test_operators_that_torchvision_misses_are_declared(tmp_path, monkeypatch):
    """Any number of missing operators, of any name, is declared; other errors are not hidden."""
    from sewsnn.data import vision

    package = tmp_path / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "transforms" / "v2.py").write_text("")
    (package / "transforms" / "__init__.py").write_text("")
    body = "import torch\nfor name in ('a_one', 'b_two', 'c_three'):\n"
    body += "    torch.library.register_fake(f'torchvision::test_{name}')(lambda: None)\n"
    (package / "__init__.py").write_text(body)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    vision._forget()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert Path(vision.transforms().__file__).parent == package / "transforms"
        vision._forget()
        (package / "__init__.py").write_text("raise RuntimeError('made for another CUDA')")
        with pytest.raises(UserError, match=r"torchvision cannot be imported: made for another CUDA. Run pip install"):
            vision.transforms()
    finally:
        vision._forget()
        sys.modules.update(before)


def test_test_images_of_another_size(tree):
    """Trains with 32 pixels and tests with 36: with random crops, larger test images are usual."""

    images = source(tree, test_size=36)
    assert next(images.train_batches(0))[0].shape[2:] == (32, 32)
    assert next(images.test_batches())[0].shape[2:] == (36, 36)
    with pytest.raises(ValueError, match="resize must be at least the size of the test images, 40, got 36"):
        source(tree, test_size=40)
