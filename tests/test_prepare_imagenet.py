"""``sewsnn data prepare imagenet``: the files it writes, and that an unfinished folder never looks finished."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import jpeg_tree
import numpy as np
import pytest
from jpeg_tree import CLASSES

from sewsnn.cli import main
from sewsnn.data import prepare_imagenet, resizing
from sewsnn.data.image_folder import scan
from sewsnn.data.preparing import prepare
from sewsnn.errors import DataError, UserError

jpeg_tree.need_torchvision()
from test_imagenet import source  # noqa: E402


@pytest.fixture
def tree(tmp_path):
    return jpeg_tree.make_tree(tmp_path / "tree")


def files(folder) -> dict[str, bytes]:
    """Returns the images that training reads, by relative path."""
    paths = (path for pattern in ("*.JPEG", "*.tar") for path in sorted(folder.rglob(pattern)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_shorter_sides_and_copies(tree, tmp_path, capsys):
    from PIL import Image

    words = ["--root", str(tree), "--output", str(tmp_path / "out"), "--size", "40", "--workers", "2"]
    assert main(["data", "prepare", "imagenet", *words]) == 0
    assert "21 training and 9 test images (21 resized, 9 copied, 0 kept)" in capsys.readouterr().out
    before, after = files(tree), files(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, data in before.items():
        (old, new) = (Image.open(folder / name) for folder in (tree, tmp_path / "out"))
        if min(old.size) <= 40:
            assert after[name] == data
            continue
        assert min(new.size) == 40 and max(new.size) == int(40 * max(old.size) / min(old.size))
        assert new.format == "JPEG" and new.mode == "RGB"
        exact = np.asarray(old.convert("RGB").resize(new.size, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(np.asarray(new) - exact).mean() < 8  # noise, at half the chroma resolution
    manifest = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert manifest["images"] == {"train": 21, "val": 9} and manifest["classes"] == list(CLASSES)
    assert not list((tmp_path / "out").rglob(".preparing*")) and not (tmp_path / "out" / "preparing.json").exists()
    old, new = ([y.tolist() for _, y in source(root).train_batches(0)] for root in (tree, tmp_path / "out"))
    assert old == new
    assert main(["data", "prepare", "imagenet", *words]) == 0
    assert "(0 resized, 0 copied, 30 kept)" in capsys.readouterr().out
    assert files(tmp_path / "out") == after


@pytest.mark.parametrize("per_shard", [0, 4])
def test_damaged_images_stop_or_are_left_out(tree, tmp_path, per_shard):
    bad = tree / "train" / CLASSES[1] / f"{CLASSES[1]}_4.JPEG"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-400])
    output = tmp_path / "out"
    with pytest.raises(
        DataError, match=rf"{bad} is a damaged image: .*Use --on-corrupt skip to leave damaged images out"
    ):
        prepare("imagenet", tree, output, workers=2, size=40, per_shard=per_shard)
    with pytest.raises(DataError, match=r"the preparation of .*out is not finished: .* Run it"):
        source(output)
    for _ in range(2):  # the second finds all there
        report = prepare("imagenet", tree, output, workers=2, size=40, per_shard=per_shard, on_corrupt="skip")
        assert "20 training and 9 test images" in report and f"left out (1):\n  {bad} is a damaged image" in report
        assert list(json.loads((output / "prepared.json").read_text())["corrupt"]) == [str(bad)]
    assert sum(len(y) for _, y in source(output).train_batches(0)) == 20
    bad.write_bytes(whole)  # mended
    assert "21 training" in prepare("imagenet", tree, output, workers=2, size=40, per_shard=per_shard)


@pytest.mark.parametrize("per_shard", [0, 4])
def test_a_disk_that_is_gone_is_not_taken_for_damaged_images(tree, tmp_path, per_shard, monkeypatch):
    """If damaged images are left out, images of an earlier call must not count as a complete set."""
    gone = tree / "train" / CLASSES[1] / f"{CLASSES[1]}_4.JPEG"
    scanned = prepare_imagenet.scan(tree)
    monkeypatch.setattr(prepare_imagenet, "scan", lambda root: scanned if root == tree else scan(root))
    whole = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UserError, match=f"cannot read {gone}: No such file or directory. Run the same command again"):
        prepare("imagenet", tree, tmp_path / "out", workers=1, size=40, per_shard=per_shard, on_corrupt="skip")
    with pytest.raises(DataError, match="is not finished"):
        source(tmp_path / "out")
    gone.write_bytes(whole)
    report = prepare("imagenet", tree, tmp_path / "out", workers=1, size=40, per_shard=per_shard, on_corrupt="skip")
    assert "21 training" in report and "left out" not in report


def test_a_folder_that_lost_images_is_refused(tree, tmp_path):
    prepare("imagenet", tree, tmp_path / "out", workers=1, size=40)
    next((tmp_path / "out" / "train" / CLASSES[0]).iterdir()).unlink()
    with pytest.raises(DataError, match=r"out has 20 images in train, but prepared.json lists 21"):
        source(tmp_path / "out")
    (tmp_path / "out" / "prepared.json").write_text("[")
    with pytest.raises(DataError, match=r"prepared.json is damaged"):
        source(tmp_path / "out")


@pytest.mark.parametrize("per_shard", [0, 5])
def test_killed_at_any_moment_it_goes_on(tmp_path, per_shard):
    """Training refuses the folder after each kill; the final result equals an uninterrupted one; no process is left."""
    tree = jpeg_tree.make_tree(tmp_path / "tree", train=60, val=20)
    prepare("imagenet", tree, tmp_path / "once", workers=2, size=40, per_shard=per_shard)
    output = tmp_path / "out"
    words = ["--root", str(tree), "--output", str(output), "--size", "40", "--workers", "2"]
    words += ["--per-shard", str(per_shard)]
    command = [sys.executable, "-m", "sewsnn.cli", "data", "prepare", "imagenet", *words]
    rng = np.random.default_rng(per_shard)
    kills = 0
    for round in range(2 if per_shard else 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(3000):
            if (output / "preparing.json").exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.15 * (round + 1)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (output / "preparing.json").exists():
            with pytest.raises(DataError, match="is not finished"):
                source(output)
    assert kills
    for _ in range(500):  # workers end by themselves
        try:
            report = prepare("imagenet", tree, output, workers=2, size=40, per_shard=per_shard)
            break
        except UserError as error:
            assert "being prepared by another process" in str(error)
            time.sleep(0.02)
    assert "180 training and 60 test images" in report
    assert files(output) == files(tmp_path / "once")
    assert not list(output.rglob(".preparing*"))


def test_a_full_disk_names_the_file(tree, tmp_path):
    """A limit on the size of files simulates a full disk."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    words = ["--root", str(tree), "--output", str(tmp_path / "out"), "--size", "40", "--workers", "1"]
    command = [sys.executable, "-m", "sewsnn.cli", "data", "prepare", "imagenet", *words]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    # Which of both splits' chunks is seen first depends on how fast they are.
    name = rf"{tmp_path}/out/(train|val)/{CLASSES[0]}/{CLASSES[0]}_\d+.JPEG"
    assert re.search(f"sewsnn: error: cannot write {name}: File too large", done.stderr)
    with pytest.raises(DataError, match="is not finished"):
        source(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".preparing-*"))


def test_outputs_that_are_something_else_are_left_alone(tree, tmp_path):
    output = tmp_path / "out"
    for inside in (tree, tree / "small"):
        with pytest.raises(UserError, match="--output must lie outside --root"):
            prepare("imagenet", tree, inside, workers=1)
    (output / "train").mkdir(parents=True)
    with pytest.raises(
        UserError,
        match=r"out is not empty and was not created by this command \(it holds train\); choose another --output",
    ):
        prepare("imagenet", tree, output, workers=1)
    os.rmdir(output / "train")
    prepare("imagenet", tree, output, workers=1, size=40)
    with pytest.raises(UserError, match=r"out was prepared with size 40, not 50: remove it or choose another --output"):
        prepare("imagenet", tree, output, workers=1, size=50)
    with pytest.raises(UserError, match=r"out was prepared with per_shard 0, not 3"):
        prepare("imagenet", tree, output, workers=1, size=40, per_shard=3)
    other = jpeg_tree.make_tree(tmp_path / "other")  # the same names
    with pytest.raises(UserError, match=rf"out was prepared with root {tree}, not {other}"):
        prepare("imagenet", other, output, workers=1, size=40)
    (tree / "train" / CLASSES[0] / "new.JPEG").write_bytes(jpeg_tree.sample(0, 0))
    with pytest.raises(UserError, match=r"out was prepared with originals \{'train': 21, 'val': 9\}, not"):
        prepare("imagenet", tree, output, workers=1, size=40)
    assert sum(len(y) for _, y in source(output).train_batches(0)) == 21


def test_ctrl_c_is_one_line_and_goes_on(tree, tmp_path, monkeypatch, capsys):
    def interrupted(work, jobs, workers, stop):
        assert workers == 3 + 1  # shards of at most 9 of 21 and of 9 images
        yield from work(*next(jobs))
        raise KeyboardInterrupt

    words = ["--root", str(tree), "--output", str(tmp_path / "out"), "--size", "40", "--per-shard", "9"]
    with monkeypatch.context() as patch:
        patch.setattr(resizing, "run", interrupted)
        assert main(["data", "prepare", "imagenet", *words, "--workers", "500"]) == 1
    assert capsys.readouterr().err.endswith(
        "sewsnn: error: stopped after 9 of 30 images. Run the same command again to resume\n"
    )
    with pytest.raises(DataError, match="is not finished"):
        source(tmp_path / "out")
    assert main(["data", "prepare", "imagenet", *words, "--workers", "1"]) == 0
    assert "9 kept)" in capsys.readouterr().out


def test_long_and_foreign_names_go_into_shards(tree, tmp_path):
    for number, name in enumerate(("x" * 120, "\u540d \u00fc")):
        next((tree / "train" / CLASSES[number]).iterdir()).rename(tree / "train" / CLASSES[number] / f"{name}.JPEG")
    report = prepare("imagenet", tree, tmp_path / "out", workers=1, size=40, per_shard=30)
    assert "21 training" in report
    paths = " ".join(map(source(tmp_path / "out").train.images.path, range(21)))
    assert "x" * 120 in paths and "\u540d \u00fc" in paths


def test_a_lock_that_cannot_be_had_is_named(tree, tmp_path):
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*out/.lock: Is a directory"):
        prepare("imagenet", tree, tmp_path / "out", workers=1, size=40)


def test_two_at_once(tree, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="out is being prepared by another process"):
            prepare("imagenet", tree, tmp_path / "out", workers=1, size=40)


def test_what_is_no_imagenet_is_said(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the folder .*nowhere/train: No such file"):
        prepare("imagenet", tmp_path / "nowhere", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        UserError, match="per_shard must be >= 0 and is available for imagenet only; got 3 for cifar10_dvs"
    ):
        prepare("cifar10_dvs", tmp_path, tmp_path / "out", per_shard=3)


@pytest.mark.parametrize("per_shard", [0, 10])
def test_a_class_of_which_nothing_is_left_is_an_error(tree, tmp_path, per_shard):
    """All images of a class or split are damaged and skipped: an error, because training could not use the rest."""
    for path in (tree / "val" / CLASSES[0]).iterdir():
        path.write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match=f"no image of .*val/{CLASSES[0]} could be read .*, so the set is not usable"):
        prepare("imagenet", tree, tmp_path / "out", workers=1, size=40, per_shard=per_shard, on_corrupt="skip")
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_what_a_kill_left_is_removed(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".preparing.json.0123abcd", ".prepared.json.89abcdef"):
        (out / name).write_text("half")
    prepare("imagenet", tree, out, workers=1, size=40)
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"images": 3}', '{"images": {"train": "x"}}', "\x00"])
def test_a_damaged_note_of_what_was_prepared_is_named(tree, tmp_path, text):
    out = tmp_path / "out"
    prepare("imagenet", tree, out, workers=1, size=40)
    (out / "prepared.json").write_text(text)
    with pytest.raises(DataError, match=r"prepared\.json is damaged"):
        source(out)


def test_names_that_are_no_text_end_in_a_report(tree, tmp_path, monkeypatch, capsys):
    """A class folder has a name that is not UTF-8, but the terminal takes only UTF-8: the report must not fail."""
    odd = os.fsdecode(b"out\xff")
    assert (
        main(["data", "prepare", "imagenet", "--root", str(tree), "--output", str(tmp_path / odd), "--size", "40"]) == 0
    )
    assert "out" in capsys.readouterr().out
