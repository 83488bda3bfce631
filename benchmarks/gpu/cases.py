"""Code that the timings share: shapes, operands, and the rows that exist already."""

import argparse

import torch

from benchmarks.common import append_rows, environment, read_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# [T, N, C, H, W]: the stem and the four stages at 224 x 224; event data; long T (no channels)
SHAPES = {
    "stem": (4, 32, 64, 112, 112),
    "stage1": (4, 32, 64, 56, 56),
    "stage1_n128": (4, 128, 64, 56, 56),
    "stage2": (4, 64, 128, 28, 28),
    "stage3": (4, 64, 256, 14, 14),
    "stage4": (4, 128, 512, 7, 7),
    "events": (16, 16, 128, 32, 32),
    "long": (500, 16, 16384),
}
QUICK = {"stage4": (4, 2, 16, 7, 7), "long": (50, 4, 64)}


def operand(shape, dtype, device, scale=1.5, mean=0.5):
    """Returns a random tensor, in channels_last memory format if it has channels."""
    x = torch.empty(shape, device=device, dtype=torch.float32).normal_(mean, scale).to(dtype)
    if len(shape) == 5:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    return x


def parse(doc: str, **more) -> argparse.Namespace:
    """Parses the command line of a timing. The result also has ``shapes``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two small shapes and three rounds, to test the program")
    parser.add_argument("--json", help="append the rows to this file as they come, one JSON object per line")
    parser.add_argument(
        "--resume", action="store_true", help="skip cases that --json has for these sources and this device"
    )
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    arguments = parser.parse_args()
    if arguments.resume and not arguments.json:
        parser.error("--resume needs --json")
    arguments.shapes = QUICK if arguments.quick else SHAPES
    arguments.rounds = 3 if arguments.quick else arguments.rounds
    return arguments


class Rows:
    """Prints rows, appends them to the file, and knows which rows exist already."""

    def __init__(self, arguments: argparse.Namespace, op: str):
        self.path = arguments.json
        self.about = environment(arguments.device, op)
        print(", ".join(f"{k} {v}" for k, v in self.about.items()), flush=True)
        rows = read_rows(arguments.json) if arguments.resume else []
        same = ("sources", "device", "torch")
        self.known = {
            self._key(r)
            for r in rows
            if "case" in r and "error" not in r and all(r.get(n) == self.about[n] for n in same)
        }

    @staticmethod
    def _key(row):
        return row["case"], row["provider"], row.get("dtype"), row.get("place")

    def has(self, case: str, provider: str, dtype: str, place: str) -> bool:
        return (case, provider, dtype, place) in self.known

    def add(self, row: dict) -> None:
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
        print(" ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
        if self.path:
            append_rows(self.path, [row | self.about])
