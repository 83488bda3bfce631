"""Draws the blocks and the networks of docs/models.md.

python -m docs.drawings            writes docs/images/*.svg
python -m docs.drawings --check    exits with an error if they are not up to date
"""

import sys
from pathlib import Path

from docs.svg import CONV, JOIN, NEURON, NORM, POOL, QUIET, READ, Sheet

IMAGES = Path(__file__).parent / "images"
COMMAND = "python -m docs.drawings"
WIDE, HIGH, GAP, PAD = 92, 26, 14, 9  # width and height of a layer's box; gap between boxes; padding in a frame


class Column:
    """Layers from top to bottom on a vertical line."""

    def __init__(self, sheet: Sheet, x: int, y: int):
        self.sheet, self.x, self.y = sheet, x, y

    def _arrow_to(self, y: int) -> None:
        self.sheet.line((self.x, self.y), (self.x, y))

    def conv(self, words: str) -> None:
        self._arrow_to(self.y + GAP + 4)
        self.y += GAP + 4
        self.sheet.box(self.x, self.y, WIDE, HIGH, words, CONV)
        self.y += HIGH

    def op(self, *layers: str) -> int | None:
        """Draws the layers of one op in a frame. Returns the y of the circle that joins the shortcut, or None."""
        top = self.y + GAP
        joined, y = None, top + PAD
        self._arrow_to(y)
        for i, layer in enumerate(layers):
            if i:
                self.sheet.line((self.x, y), (self.x, y + GAP))
                y += GAP
            if layer in ("g", "+"):
                joined = y + 13
                self.sheet.circle(self.x, joined, layer)
            else:
                self.sheet.box(self.x, y, WIDE, HIGH, layer, NORM if layer == "BN" else NEURON)
            y += HIGH
        self.sheet.frame(self.x - WIDE / 2 - PAD, top, WIDE + 2 * PAD, y + PAD - top)
        self.y = y
        return joined

    def out(self, words: str, y: int) -> None:
        self._arrow_to(y - 16)
        self.sheet.text(self.x, y, words, 13, style="italic")


def block(sheet: Sheet, x: int, title: list[str], layers, shortcut: bool, bottom: int) -> None:
    """Draws a block from S^l to O^l, with the shortcut on its right."""
    sheet.text(x, 34, title[0], 14, weight="bold")
    sheet.text(x, 52, title[1], 12, QUIET)
    sheet.text(x, 84, "Sˡ[t]", 13, style="italic")
    column, joined = Column(sheet, x, 92), None
    for layer in layers:
        if isinstance(layer, str):
            column.conv(layer)
        else:
            joined = column.op(*layer) or joined
    if shortcut:
        side = x + WIDE / 2 + PAD + 16
        sheet.dot(x, 98)
        sheet.line((x, 98), (side, 98), (side, joined), (x + 14, joined))
    column.out("Oˡ[t]", bottom)


def draw_blocks() -> Sheet:
    """Draws the SEW, bottleneck, Spiking and plain blocks, the shortcuts with a convolution, and g."""
    bottom = 566
    sheet = Sheet(
        1010,
        bottom + 56,
        "Blocks of SEW ResNet, Spiking ResNet and the plain network",
        "SEW: BN and a neuron follow every convolution, and g joins the last spikes A to the shortcut S. Spiking: the "
        "shortcut is added before the last neuron. Plain: no shortcut. Each dashed frame is one op.",
    )
    op, last = ("BN", "SN"), ("BN", "SN", "g")
    block(sheet, 100, ["SEW", "basic block"], ["conv 3×3", op, "conv 3×3", last], True, bottom)
    block(sheet, 270, ["SEW", "bottleneck"], ["conv 1×1", op, "conv 3×3", op, "conv 1×1, 4×", last], True, bottom)
    block(sheet, 440, ["Spiking", "basic block"], ["conv 3×3", op, "conv 3×3", ("BN", "+", "SN")], True, bottom)
    block(sheet, 610, ["Plain", "basic block"], ["conv 3×3", op, "conv 3×3", op], False, bottom)
    sheet.line((698, 24), (698, bottom + 6), head=False, colour="#d5dae0")
    _shortcuts(sheet)
    _connections(sheet)
    _legend(sheet, bottom + 34)
    return sheet


def _shortcuts(sheet: Sheet) -> None:
    """Draws the shortcuts of blocks whose stride is 2 or whose width changes."""
    sheet.text(850, 34, "Shortcut", 14, weight="bold")
    sheet.text(850, 52, "where stride or width changes", 12, QUIET)
    for x, name, layers, target in ((775, "SEW", ("BN", "SN"), "to g"), (925, "Spiking", ("BN",), "to +")):
        sheet.text(x, 84, "Sˡ[t]", 13, style="italic")
        column = Column(sheet, x, 92)
        column.conv("conv 1×1")
        column.op(*layers)
        column.out(target, 270)
        sheet.text(x, 290, name, 12, QUIET)


def _connections(sheet: Sheet) -> None:
    """Draws Table 1 of the paper, and says when the block is an identity."""
    sheet.text(850, 340, "g(A, S)", 14, weight="bold", style="italic")
    sheet.text(850, 358, "A: spikes of the last SN", 12, QUIET)
    columns = (722, 790, 900)
    rows = [
        ("", "out", "identity if"),
        ("ADD", "A + S", "A = 0"),
        ("AND", "A · S", "A = 1"),
        ("IAND", "S · (1 − A)", "A = 0"),
    ]
    for i, row in enumerate(rows):
        y = 388 + 26 * i
        for x, words, weight in zip(columns, row, ("bold", "normal", "normal"), strict=True):
            sheet.text(x, y, words, 12, QUIET if i == 0 else "#1c2530", "start", weight)
        sheet.line((714, y + 9), (986, y + 9), head=False, colour="#d5dae0")
    notes = ("ADD gives sums 0, 1, 2, 3 …; AND and IAND", "give spikes. IAND: A inhibits S, not S A.")
    for i, words in enumerate(notes):
        sheet.text(714, 496 + 17 * i, words, 12, QUIET, "start")


def _legend(sheet: Sheet, y: int) -> None:
    sheet.line((24, y - 22), (986, y - 22), head=False, colour="#d5dae0")
    sheet.frame(30, y - 11, 26, 18)
    sheet.text(64, y + 2, "one op (sewsnn.layers.bn_neuron), all time-steps", 12, anchor="start")
    for x, fill, words in (
        (400, CONV, "convolution of T·N images"),
        (606, NORM, "batch norm"),
        (714, NEURON, "SN: IF, LIF, PLIF"),
        (858, JOIN, "joins the shortcut"),
    ):
        sheet.box(x, y - 9, 16, 14, "", fill)
        sheet.text(x + 14, y + 2, words, 12, anchor="start")


def draw_networks() -> Sheet:
    """Draws the four families from the input to the logits: layers that run once per image, and at every time-step."""
    sheet = Sheet(
        1010,
        520,
        "The networks",
        "ImageNet ResNet, 7B-Net, Wide-7B-Net and the CIFAR-10 net, layer by layer with the sizes of their outputs.",
    )
    rows = [
        (
            "ImageNet ResNet 18 to 152",
            "SEW, Spiking or plain blocks; IF. /2: stride 2. Bottlenecks end at 4 times the width",
            [("image", "3×224²", READ), ("conv 7×7 /2|BN", "64×112²", CONV)],
            [
                ("SN|max pool 3 /2", "64×56²", NEURON),
                ("blocks|64", "56²", JOIN),
                ("blocks /2|128", "28²", JOIN),
                ("blocks /2|256", "14²", JOIN),
                ("blocks /2|512", "7²", JOIN),
                ("mean|over space", "", POOL),
            ],
            "FC 1000",
        ),
        (
            "7B-Net, DVS Gesture",
            "SEW, Spiking or plain blocks; PLIF",
            [],
            [
                ("T frames", "2×128²", READ),
                ("conv 1×1|BN, SN", "32×128²", CONV),
                ("7 × {block 32,|max pool 2}", "128² → 1²", JOIN),
            ],
            "FC 11",
        ),
        (
            "Wide-7B-Net, CIFAR10-DVS",
            "SEW blocks; PLIF",
            [],
            [
                ("T frames", "2×128²", READ),
                ("conv 1×1|BN, SN", "64×128²", CONV),
                ("4 × {block 64,|max pool 2}", "128² → 8²", JOIN),
                ("conv 1×1|BN, SN", "128×8²", CONV),
                ("3 × {block 128,|max pool 2}", "8² → 1²", JOIN),
            ],
            "FC 10",
        ),
        (
            "CIFAR-10 net, Table S3",
            "SEW or Spiking blocks; IF",
            [("image", "3×32²", READ), ("conv 3×3|BN", "32×32²", CONV)],
            [("SN", "32×32²", NEURON), ("5 × {block 32, block 32,|max pool 2}", "32² → 1²", JOIN)],
            "FC 10",
        ),
    ]
    for i, row in enumerate(rows):
        _network(sheet, 24 + 122 * i, *row)
    return sheet


def _wide(words: str) -> int:
    """Returns the width of a box around these words; ``|`` separates lines."""
    return max(54, 16 + round(6.6 * max(map(len, words.split("|")))))


def _network(sheet: Sheet, y: int, title: str, about: str, once, steps, classifier: str) -> None:
    sheet.text(24, y + 12, title, 14, anchor="start", weight="bold")
    sheet.text(264, y + 12, about, 12, QUIET, "start")
    x, y, last = 24, y + 38, None
    for layers, words in (
        (once, "once per image"),
        (steps, "at every time-step"),
        ([("mean over T|" + classifier, "", POOL)], ""),
    ):
        if not layers:
            continue
        width = sum(_wide(words) + 22 for words, *_ in layers) - 22 + 20
        if words:
            sheet.frame(x, y - 10, width, 74, "#8b97a5", "2 3")
            sheet.add("rect", x=x + 10, y=y - 17, width=8 + 6.2 * len(words), height=14, fill="#ffffff")
            sheet.text(x + 14, y - 6, words, 11, QUIET, "start")
        x += 10
        for name, size, fill in layers:
            wide = _wide(name)
            if last is not None:
                sheet.line((last, y + 21), (x, y + 21))
            sheet.box(x + wide / 2, y + 2, wide, 38, name.split("|"), fill, 11)
            sheet.text(x + wide / 2, y + 56, size, 11, QUIET)
            last = x + wide
            x += wide + 22
        x += 10


def drawings() -> dict[str, str]:
    """Returns file names and their contents."""
    return {"blocks.svg": str(draw_blocks()), "networks.svg": str(draw_networks())}


def stale() -> list[str]:
    """Returns the names of the files that are missing or out of date."""
    paths = {IMAGES / name: text for name, text in drawings().items()}
    return [p.name for p, text in paths.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(f"not up to date: {', '.join(stale())}: run {COMMAND}" if stale() else 0)
    for name, text in drawings().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
