"""Measures how many images per second each ImageNet loader delivers, beside the speed of a training step.

    python -m benchmarks.loader [--root FOLDER ...] [--loaders torchvision dali] [--workers 0 2 8]
                                [--step-images-per-second X | --config CONFIG] [--quick] [--json FILE]

A root holds folders of images or WebDataset shards, as training reads them (data.root). Without a root, the program
generates JPEG files of ImageNet's mean size (500 x 375 pixels, about 110 kB), as folders and as shards. The batches are
those of training: decoded, cropped at random and mirrored, on the CPU, or with DALI on the GPU if there is one. The
first batches of an epoch, during which the workers start, are not counted. All files are read once before, so that the
measurement covers the loader and not the disk (unless the files do not fit into memory).

The speed of the step is given, or measured: forward, backward and optimizer step of a configuration's network on one
batch that is already on the device. Training reaches the lower of the two speeds.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import append_rows, environment
from sewsnn.data import create_data
from sewsnn.data.shards import find_shards, pack
from sewsnn.errors import UserError

CLASSES = 8
WARM_UP = 2  # batches


def generate(folder: Path, images: int, height: int, width: int) -> tuple[Path, Path]:
    """Generates the same images as folders and as shards. Returns both roots."""
    from PIL import Image

    rng = np.random.default_rng(0)
    trees = folder / "folders", folder / "shards"
    trees[1].mkdir(parents=True)
    for split, count in (("train", images), ("val", CLASSES)):
        samples = []
        for i in range(count):
            # Detail on several scales, as in photographs, because the time of a decoder depends on it.
            image = sum(
                np.asarray(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).resize((width, height)), float)
                * part
                for h, w, part in ((6, 8, 0.55), (48, 64, 0.3), (height, width, 0.15))
            )
            path = trees[0] / split / f"n{i % CLASSES:08d}" / f"{i:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(path, quality=92)
            samples.append((f"{i:08d}", path.read_bytes(), "jpg", i % CLASSES))
        for first in range(0, count, 100):
            (trees[1] / f"{split}-{first // 100:06d}.tar").write_bytes(pack(samples[first : first + 100]))
    return trees


def loader_row(root: Path, loader: str, workers: int, batch_size: int, image_size: int, seconds: float) -> dict:
    """Measures images per second over whole batches for at least ``seconds`` (at most an epoch)."""
    source = create_data(
        "imagenet",
        batch_size=batch_size,
        seed=0,
        root=str(root),
        workers=workers,
        loader=loader,
        image_size=image_size,
        resize=max(256, image_size),
        drop_last=True,
    )
    with contextlib.closing(source.train_batches(0)) as batches:
        images, last, started, times = 0, 0.0, 0.0, []
        for step, (x, y) in enumerate(batches):
            if x.is_cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if step >= WARM_UP:
                images += len(y)
                times.append(now - last)
            else:
                started = now
            last = now
            if images and now - started > seconds:
                break
    if not images:
        raise UserError(
            f"{root} has fewer than {WARM_UP + 1} batches of {batch_size} images; choose a smaller --batch-size"
        )
    row = {"case": "loader", "root": "shards" if find_shards(root) else "folders", "loader": loader, "workers": workers}
    row |= {"batch_size": batch_size, "image_size": image_size, "images": images}
    return row | {"images_per_second": images / (last - started), "p50_batch_ms": 1e3 * statistics.median(times)}


def step_images_per_second(path: str, image_size: int, batch_size: int | None, steps: int) -> tuple[float, str]:
    """Measures the training step of a configuration's network on this machine. Returns images per second and a
    description."""
    from sewsnn.train import build
    from sewsnn.train.config import load_config

    config = load_config(path)
    batch = batch_size or config.data.batch_size
    device = build.choose_device(config.train.device)
    source = create_data("imagenet", batch_size=batch, seed=0, generated=batch)
    model = build.build_model(config, source).to(device)
    optimizer = build.build_optimizer(config, model)
    x = torch.randn(batch, 3, image_size, image_size, device=device)
    y = torch.arange(batch, device=device) % source.num_classes
    amp = device.type == "cuda" and config.train.amp != "off"
    dtype = torch.float16 if config.train.amp == "fp16" else torch.bfloat16

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=amp):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    precision = config.train.amp if amp else "fp32"
    return batch / statistics.median(times), f"{config.name}, T = {config.model.T}, {precision}, {device.type}"


def verdict(loading: float, step: float) -> str:
    """Says whether loading or the training step limits the speed."""
    if loading < step:
        return f"loading is the bottleneck: training would reach {loading / step:.0%} of the step's speed"
    return f"the step is the bottleneck: loading is {loading / step:.1f} times as fast"


def read_once(root: Path) -> int:
    """Reads all files of the root. Returns their size in bytes."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return sum(len(path.read_bytes()) for path in paths)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", nargs="+", help="folders of images or shards (default: generated images)")
    parser.add_argument("--loaders", nargs="+", choices=("torchvision", "dali"), default=["torchvision", "dali"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1024, help="number of generated images (default: 1024)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration of each measurement, at most an epoch (default: 10)"
    )
    parser.add_argument("--step-images-per-second", type=float, help="speed of the training step")
    parser.add_argument("--config", help="measure the training step of this configuration")
    parser.add_argument("--quick", action="store_true", help="a small case to test the program; not a result")
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.workers, arguments.batch_size, arguments.image_size = arguments.workers[:2], 4, 32
        arguments.images, arguments.seconds = 24, 1.0
    step, of = arguments.step_images_per_second, "given"
    if step is None and arguments.config:
        batch = arguments.batch_size if arguments.quick else None
        step, of = step_images_per_second(arguments.config, arguments.image_size, batch, 2 if arguments.quick else 20)
    with contextlib.ExitStack() as stack:
        roots = [Path(root) for root in arguments.root or ()]
        if not roots:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sewsnn-loader-"))
            roots = generate(Path(folder), arguments.images, *((60, 80) if arguments.quick else (375, 500)))
        for root in roots:
            print(f"{root}: {read_once(root) / 1e6:.1f} MB")
        rows = measure(roots, arguments)
    about = environment("cuda" if torch.cuda.is_available() else "cpu") | versions()
    print("Loading of training batches; " + ", ".join(f"{k} {v}" for k, v in about.items()))
    if step:
        print(f"training step: {step:,.1f} images/s ({of})")
    for row in rows:
        row |= {"step_images_per_second": step, "step_of": of} if step else {}
        if arguments.quick:
            row["quick"] = True
        print(
            f"{row['root']:>8} {row['loader']:>12} {row['workers']:>3} workers "
            f"{row['images_per_second']:>9,.1f} images/s"
            + (f"  {verdict(row['images_per_second'], step)}" if step else "")
        )
    if arguments.json:
        append_rows(arguments.json, [row | about for row in rows])


def measure(roots, arguments) -> list[dict]:
    """Returns a row for each root, loader and number of workers. A loader that is not installed is reported and left
    out."""
    rows = []
    for loader in arguments.loaders:
        cases = itertools.product(roots, arguments.workers)
        try:
            for root, workers in cases:
                sizes = (arguments.batch_size, arguments.image_size, arguments.seconds)
                rows.append(loader_row(root, loader, workers, *sizes))
        except UserError as error:
            print(f"{loader}: {error}")
    if not rows:
        raise SystemExit("nothing was measured")
    return rows


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that load images."""
    from importlib import metadata

    found = {}
    for name in ("torchvision", "pillow", "nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


if __name__ == "__main__":
    main()
