"""benchmarks.loader runs on generated and on existing images, and names the bottleneck."""

import json
from pathlib import Path

import jpeg_tree
import pytest

from benchmarks import loader

ROOT = Path(__file__).parent.parent
jpeg_tree.need_torchvision()


def test_verdict():
    assert loader.verdict(300, 1200) == "loading is the bottleneck: training would reach 25% of the step's speed"
    assert loader.verdict(1200, 300) == "the step is the bottleneck: loading is 4.0 times as fast"


@pytest.mark.usefixtures("one_thread")
def test_quick_with_a_measured_step(tmp_path, capsys):
    config = ROOT / "configs" / "imagenet" / "sew_resnet18.yaml"
    words = ["--quick", "--loaders", "torchvision", "--workers", "0", "--json", str(tmp_path / "rows.jsonl")]
    loader.main([*words, "--config", str(config)])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["root"], row["workers"]) for row in rows] == [("folders", 0), ("shards", 0)]
    for row in rows:
        assert row["quick"] and row["images"] == 16 and row["images_per_second"] > 0 and "torchvision" in row
        assert row["step_images_per_second"] > 0 and row["step_of"].startswith("sew_resnet18, T = 4, fp32, cpu")
    assert "is the bottleneck" in capsys.readouterr().out


def test_a_given_root_and_step(tmp_path, capsys):
    """A loader that is not installed is reported; DALI is measured if it is installed."""
    tree = jpeg_tree.make_tree(tmp_path)
    loader.main(["--quick", "--root", str(tree), "--workers", "1", "--step-images-per-second", "1e9"])
    out = capsys.readouterr().out
    assert "training step: 1,000,000,000.0 images/s (given)" in out
    assert "torchvision   1 workers" in out and "loading is the bottleneck" in out
    assert "dali   1 workers" in out or "dali: data.loader: dali needs NVIDIA DALI" in out


def test_generated_images_are_of_imagenets_size(tmp_path):
    folders, shards = loader.generate(tmp_path, 8, 375, 500)
    sizes = [len(path.read_bytes()) for path in folders.rglob("*.JPEG")]
    assert 80_000 < sum(sizes) / len(sizes) < 150_000
    assert len(list(shards.iterdir())) == 2
