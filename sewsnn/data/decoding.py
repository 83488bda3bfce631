"""Image files: tests whether a file is complete, and decodes it to RGB."""

import io
import warnings
from typing import TYPE_CHECKING

from sewsnn.errors import DataError, UnreadableError, UserError
from sewsnn.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG")  # one of ImageNet's files named .JPEG is a PNG
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TAIL = 64  # bytes to search for the end marker: some files have padding after it


def read_file(path: str) -> bytes:
    """Returns the bytes of a file. Raises UnreadableError, which names the file, if it cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise UnreadableError.of(path, error) from None


def decode(data: bytes, path: str) -> "Image":
    """Decodes an image of any mode (grey, palette, CMYK, 16 bits, with transparency) to RGB with 8 bits per channel.

    It keeps the upper 8 bits of 16-bit values, as Pillow does for colour images. It drops transparency, uses only the
    first frame of an animation, and ignores EXIF data.

    Args:
        data: the bytes of the file.
        path: the name of the file, for messages.

    Raises:
        DataError: the data is not an image, is truncated or damaged, or has more than ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels (a small file can decode to gigabytes). The message names ``path``.
    """
    return _pillow(to_rgb, data, path)


def to_rgb(image: "Image") -> "Image":
    """Converts an image of any mode to RGB with 8 bits per channel.

    Raises:
        ValueError: the values have no defined range (mode F), or Pillow has no conversion.
    """
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip at 255
        import numpy as np
        from PIL import Image

        values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its values have no defined range (mode F); expected 8 or 16 bits")
    elif image.mode in ("La", "RGBa"):  # colours premultiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGB")


def whole_size(data: bytes, path: str) -> tuple[int, int]:
    """Returns height and width from the header, after a test that the file is complete: it must have its end marker, or
    else decode without error.

    Raises:
        DataError: as in :func:`decode`.
    """
    kind, size = _pillow(lambda image: (image.format, (image.height, image.width)), data, path)
    if not ended(data, kind):
        decode(data, path)
    return size


def check_size(size: tuple[int, int], path: str) -> tuple[int, int]:
    """Returns ``size``. Raises DataError if a resized image of this size would exceed Pillow's limit, as for an image
    that is a few pixels wide but very long."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most is not None and size[0] * size[1] > most:
        raise DataError(
            f"{path} would be resized to {size[1]:,} x {size[0]:,} pixels, more than the limit of {most:,} pixels", path
        )
    return size


def ended(data: bytes, kind: str) -> bool:
    """Returns whether the data ends with the end marker of a JPEG or PNG file."""
    return _ENDS.get(kind, _ENDS["JPEG"]) in data[-_TAIL:]


def _pillow(use, data: bytes, path: str):
    try:
        from PIL import Image
    except ImportError:
        raise UserError("data: reading images needs Pillow. Run pip install pillow") from None
    if not data:
        raise DataError(f"{path} is empty", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return use(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the limit for an image", path
        ) from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path} is not a JPEG or PNG image ({len(data):,} bytes)", path) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"{path} is a damaged image: {error or type(error).__name__}", path) from None
