"""Image files: whether they are whole, and their pixels."""

import io
import warnings
from typing import TYPE_CHECKING

from sewsnn.errors import DataError, UnreadableError, UserError
from sewsnn.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG")  # ImageNet has a PNG among its files named .JPEG
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TAIL = 64  # bytes in which the end of a file is looked for: some have padding after it


def read_file(path: str) -> bytes:
    """Raises UnreadableError if the file cannot be read; names it."""
    try:
        return read_regular(path)
    except OSError as error:
        raise UnreadableError.of(path, error) from None


def decode(data: bytes, path: str) -> "Image":
    """An image in RGB of 8 bits, whatever its mode (grey, palette, CMYK, 16 bits, with transparency). Of 16 bits the
    upper 8 are taken, as Pillow does by itself for colours. Transparency is left out, of an animation the first frame
    taken; EXIF is not looked at.

    Raises:
        DataError: no image, truncated or damaged, or larger than ``PIL.Image.MAX_IMAGE_PIXELS`` (a small file that
            decodes to gigabytes); names ``path``.
    """
    return _pillow(to_rgb, data, path)


def to_rgb(image: "Image") -> "Image":
    """An image of any mode in RGB of 8 bits.

    Raises:
        ValueError: its numbers have no scale (mode F), or there is no conversion.
    """
    if image.mode.startswith("I"):  # grey of 16 bits, of which Pillow's own conversion keeps what is below 256
        import numpy as np
        from PIL import Image

        values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it has numbers without a scale (mode F), expected are 8 or 16 bits")
    elif image.mode in ("La", "RGBa"):  # colours that were multiplied with their transparency
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGB")


def whole_size(data: bytes, path: str) -> tuple[int, int]:
    """Height and width, from the header; that the file is whole is told by its end, or else by decoding it.

    Raises:
        DataError: as of :func:`decode`.
    """
    kind, size = _pillow(lambda image: (image.format, (image.height, image.width)), data, path)
    if not ended(data, kind):
        decode(data, path)
    return size


def check_size(size: tuple[int, int], path: str) -> tuple[int, int]:
    """``size``; DataError if an image of it would be larger than Pillow opens: a few pixels wide, but long."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most is not None and size[0] * size[1] > most:
        raise DataError(f"{path} would be resized to {size[1]:,} x {size[0]:,} pixels: refused", path)
    return size


def ended(data: bytes, kind: str) -> bool:
    """Whether the last bytes are those that end a JPEG or PNG file."""
    return _ENDS.get(kind, _ENDS["JPEG"]) in data[-_TAIL:]


def _pillow(use, data: bytes, path: str):
    try:
        from PIL import Image
    except ImportError:
        raise UserError("data: images need Pillow: pip install pillow") from None
    if not data:
        raise DataError(f"{path} is empty", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, which nothing here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return use(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: refused", path) from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path} is not a JPEG or PNG image ({len(data):,} bytes)", path) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file: OSError, SyntaxError, struct.error ...
        raise DataError(f"{path} is a damaged image: {error or type(error).__name__}", path) from None
