"""Images of every mode reach the network with their colours; a path that is no file is an error that names it."""

import io
import os
import socket
import threading

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from sewsnn.data import aedat, cifar10, decoding, dvs_gesture, event_store, image_folder, resizing, shards  # noqa: E402
from sewsnn.errors import DataError, UnreadableError  # noqa: E402
from sewsnn.files import read_regular  # noqa: E402

RAMP = np.linspace(0, 255, 16 * 16).round().astype(np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100, subsampling=0, **options)
    return file.getvalue()


def grey16():
    return Image.fromarray(RAMP.astype(np.uint16) * 257)


def paletted(transparency=None):
    image = Image.fromarray(RAMP // 4 * 4).convert("P")
    return png(image) if transparency is None else png(image, transparency=transparency)


GREY = np.repeat(RAMP[..., None], 3, -1)
ALPHA = Image.fromarray(255 - RAMP // 2)
ROTATED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"
CASES = {  # name -> (file, colours, most that may differ)
    "L": (png(Image.fromarray(RAMP)), GREY, 0),
    "1": (png(Image.fromarray(RAMP > 127)), np.where(GREY > 127, 255, 0), 0),
    "16 bits": (png(grey16()), GREY, 0),
    "LA": (png(Image.merge("LA", [Image.fromarray(RAMP), ALPHA])), GREY, 0),
    "P": (paletted(), GREY // 4 * 4, 0),
    "P, one transparent": (paletted(8), GREY // 4 * 4, 0),
    "P, alpha": (paletted(bytes(range(255, -1, -1))), GREY // 4 * 4, 0),
    "RGB": (png(Image.fromarray(COLOURS)), COLOURS, 0),
    "RGBA": (png(Image.merge("RGBA", [*Image.fromarray(COLOURS).split(), ALPHA])), COLOURS, 0),
    "interlaced": (png(Image.fromarray(COLOURS), interlace=1), COLOURS, 0),
    "animated": (png(Image.fromarray(COLOURS), save_all=True, append_images=[Image.new("RGB", (16, 16))]), COLOURS, 0),
    "JPEG": (jpeg(Image.fromarray(COLOURS)), COLOURS, 8),
    "JPEG grey": (jpeg(Image.fromarray(RAMP)), GREY, 4),
    "JPEG CMYK": (jpeg(Image.fromarray(COLOURS).convert("CMYK")), COLOURS, 10),
    "rotated by EXIF": (
        jpeg(Image.fromarray(COLOURS), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"),
        COLOURS,
        8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mode_has_its_colours(name, tmp_path):
    """Checks the decoder of training and the prepared files."""
    data, expected, most = CASES[name]
    image = decoding.decode(data, name)
    found = np.asarray(image).astype(int)
    assert image.mode == "RGB" and found.shape == (16, 16, 3)
    assert np.abs(found - expected).max() <= most
    path = tmp_path / "x.png"
    path.write_bytes(data)
    kind, small = resizing.small(str(path), 8)
    half = np.asarray(decoding.decode(small, "small")).astype(int)
    block = np.asarray(expected).reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert kind == "resized" and np.abs(half - block).mean() < 12
    assert resizing.small(str(path), 16) == ("copied", data)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "La", "RGBa", "HSV", "YCbCr"])
def test_modes_that_other_decoders_give(mode):
    if mode.startswith("I"):
        kind = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
        values = (RAMP.astype(np.int64) * 257).astype(kind)
        image = Image.frombytes(mode, (16, 16), values.tobytes())
        assert np.array_equal(np.asarray(decoding.to_rgb(image)), GREY)
    else:
        via = {"La": "LA", "RGBa": "RGBA"}.get(mode)
        image = Image.fromarray(COLOURS)
        image = image.convert(via).convert(mode) if via else image.convert(mode)
        assert decoding.to_rgb(image).mode == "RGB"


def test_numbers_without_a_scale_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        decoding.to_rgb(Image.new("F", (2, 2)))


READERS = {
    "image": lambda path: decoding.read_file(str(path)),
    "aedat 3.1": aedat.read_aedat3
    if hasattr(aedat, "read_aedat3")
    else lambda path: aedat._open(path, b"#!AER-DAT3.1"),
    "list": dvs_gesture._lines,
    "index": lambda path: event_store.read_index(path.rename(path.with_name("index.json")).parent),
    "json": image_folder.read_json,
    "shard": shards.places,
    "cifar10": cifar10._records,
    "any": read_regular,
}


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_and_not_waited_for(reader, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "thing"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("thing")
    ends = []

    def read():
        try:
            ends.append(READERS[reader](path))
        except (DataError, OSError) as error:
            ends.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert ends, "it waits for a writer"
    assert isinstance(ends[0], UnreadableError if reader != "any" else OSError), ends
    if kind == "FIFO":
        assert "FIFO, socket or device" in str(ends[0])


@pytest.mark.parametrize("text", ["0", "12", "\ufeff7", " 3\n"])
def test_labels_with_a_byte_order_mark(text, tmp_path):
    """Some editors put a byte order mark at the beginning of a text."""
    import tarfile

    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for name, content in (("a.jpg", CASES["JPEG"][0]), ("a.cls", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (place,) = shards.places(tmp_path / "train-000000.tar")
    assert place.label == int(text.strip("\ufeff"))
    (tmp_path / "list.txt").write_text("\ufeffuser01_led.aedat\n", encoding="utf-8")
    assert dvs_gesture._lines(tmp_path / "list.txt") == ["user01_led.aedat"]
