"""Checks the zip archive that ``torch.save`` writes: compares all records with their checksums, which ``torch.load``
ignores.

It reads only the parts that torch's reader uses, in the same way: the end of the archive, its directory, the name and
lengths in the header of each record, and the bytes. The other parts of a zip file (dates, padding, second copies of
sizes) do not affect any value.
"""

import struct
import zlib
from typing import BinaryIO, NamedTuple

_HEAD, _ENTRY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_FOLDER = 0x10  # the attribute of a folder
_BLOCK = 1 << 22
_WIDE = 0xFFFFFFFF  # marks a number that is stored in a 64-bit field instead


class Damage(Exception):
    """The archive differs from what was written; the message says where."""


class Foreign(Exception):
    """The archive was not written by ``torch.save``; the message says how it differs."""


class _Record(NamedTuple):
    name: bytes
    crc: int
    size: int
    packed: int  # size in the file
    start: int  # offset of the header
    how: bytes  # flags and method of compression


def is_archive(file: BinaryIO) -> bool:
    """Returns whether the file begins like a zip archive, as ``torch.load`` tests it."""
    file.seek(0)
    return file.read(len(_HEAD)) == _HEAD


def check_records(file: BinaryIO) -> bool:
    """Compares all bytes that ``torch.load`` will read with the checksums.

    Args:
        file: the archive, opened for reading bytes.

    Returns:
        True; False if the archive has no checksums, because it was written with
        ``torch.serialization.set_crc32_options(False)``.

    Raises:
        Damage: a byte differs from what was written, or is missing.
        Foreign: records are compressed or encrypted.
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    records = _directory(file, size)
    if sum(record.packed for record in records) > size:
        raise Damage("its records are larger than the file")
    unchecked = not any(record.crc for record in records)  # the checksum of an empty record is 0 as well
    for record in records:
        start = _data(file, record)
        if start + record.size > size:
            raise Damage(f"record {_text(record.name)} extends beyond the end of the file")
        if not unchecked and _crc(file, start, record.size) != record.crc:
            raise Damage(f"the bytes of record {_text(record.name)} do not match their checksum")
    return not unchecked


def _directory(file: BinaryIO, size: int) -> list[_Record]:
    """Returns the entries of the directory at the end of the archive."""
    end = _read(file, size - 22, 22)
    if end[:4] != _END or end[20:] != b"\0\0":
        raise Damage("it is truncated, or the end of the file is damaged")
    count, length, start = struct.unpack("<HII", end[10:20])
    last = size - 22  # where the directory ends
    locator = _read(file, last - 20, 20) if last >= 20 else b""
    if locator[:4] == _LOCATOR64:
        (last,) = struct.unpack("<Q", locator[8:16])
        end64 = _read(file, last, 56)
        if end64[:4] != _END64:
            raise Damage("the end of the file is damaged")
        count, length, start = struct.unpack("<QQQ", end64[32:56])
    if start + length != last:
        raise Damage("its directory is not at the recorded position")
    data = _read(file, start, length)
    records, place = [], 0
    while place < length:
        record, place = _entry(data, place)
        records.append(record)
    if len(records) != count:
        raise Damage(f"its directory has {len(records):,} records instead of {count:,}")
    if len({record.name.lower() for record in records}) != count:  # torch ignores case in names
        raise Damage("two of its records have the same name")
    return records


def _entry(data: bytes, place: int) -> tuple[_Record, int]:
    """Returns the entry at ``place`` and the position of the next one."""
    fixed = data[place : place + 46]
    if len(fixed) < 46 or fixed[:4] != _ENTRY:
        raise Damage("its directory is damaged")
    crc, packed, size, names, extras, comments = struct.unpack("<IIIHHH", fixed[16:34])
    attributes, start = struct.unpack("<II", fixed[38:46])
    name = data[place + 46 : place + 46 + names]
    extra = data[place + 46 + names : place + 46 + names + extras]
    packed, size, start = _wide(packed, size, start, extra)
    if attributes & _FOLDER or name.endswith(b"/"):  # torch's reader would leave its memory uninitialised
        raise Damage(f"record {_text(name)} is marked as a folder")
    return _Record(name, crc, size, packed, start, fixed[8:12]), place + 46 + names + extras + comments


def _wide(packed: int, size: int, start: int, extra: bytes) -> tuple[int, int, int]:
    """Reads numbers that need more than 32 bits from the extra field 1, in this order: size, packed, start."""
    numbers, at = [size, packed, start], 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            values = [v for (v,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            for i, number in enumerate(numbers):
                if number == _WIDE:
                    if not values:
                        raise Damage("its directory is damaged")
                    numbers[i] = values.pop(0)
            break
        at += 4 + length
    size, packed, start = numbers
    return packed, size, start


def _data(file: BinaryIO, record: _Record) -> int:
    """Returns the offset at which the bytes of a record begin, according to its own header."""
    head = _read(file, record.start, 30)
    if head[:4] != _HEAD:
        raise Damage(f"record {_text(record.name)} is not at the position in the directory")
    names, extras = struct.unpack("<HH", head[26:30])
    if _read(file, record.start + 30, names) != record.name or head[6:10] != record.how:
        raise Damage(f"the header of record {_text(record.name)} is damaged")
    flags, method = struct.unpack("<HH", record.how)
    if flags & 1 or method:
        raise Foreign(f"record {_text(record.name)} is {'encrypted' if flags & 1 else 'compressed, as in TorchScript'}")
    if record.packed != record.size:
        raise Damage("its directory is damaged")
    return record.start + 30 + names + extras


def _crc(file: BinaryIO, start: int, size: int) -> int:
    crc = 0
    file.seek(start)
    block = memoryview(bytearray(min(size, _BLOCK)))
    while size:
        got = file.readinto(block[: min(size, _BLOCK)])
        if not got:
            raise Damage("the file ends too early")
        crc, size = zlib.crc32(block[:got], crc), size - got
    return crc


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    if start < 0:
        raise Damage("the file is too short; it is truncated")
    end = file.seek(0, 2)
    if start + size > end:
        raise Damage("it is truncated, or its directory is damaged")
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise Damage("the file ends too early")
    return data


def _text(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace"))
