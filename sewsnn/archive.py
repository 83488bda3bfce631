"""The zip archive that ``torch.save`` writes: all records against their checksums, which ``torch.load`` ignores.

Only what torch's reader makes use of is looked at, and in the way it does: the end of the archive, its directory, of
each record the header's name and lengths, and the bytes. Whatever else a zip file holds (dates, padding, second copies
of sizes) changes no value.
"""

import struct
import zlib
from typing import BinaryIO, NamedTuple

_HEAD, _ENTRY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_FOLDER = 0x10  # among the attributes
_BLOCK = 1 << 22
_WIDE = 0xFFFFFFFF  # the number stands in a field of 64 bits


class Damage(Exception):
    """The archive is not as it was written; the message says where."""


class Foreign(Exception):
    """The archive is not one that ``torch.save`` writes; the message says what is different."""


class _Record(NamedTuple):
    name: bytes
    crc: int
    size: int
    packed: int  # its size in the file
    start: int  # of its header
    how: bytes  # its flags and its method of compression


def is_archive(file: BinaryIO) -> bool:
    """Whether ``torch.load`` takes the file for one: by its first bytes."""
    file.seek(0)
    return file.read(len(_HEAD)) == _HEAD


def check_records(file: BinaryIO) -> bool:
    """Compares all bytes that ``torch.load`` will read with the checksums.

    Returns:
        False: there are none, which ``torch.serialization.set_crc32_options(False)`` makes of them.

    Raises:
        Damage: a byte is another than was written, or missing.
        Foreign: records are compressed or encrypted.
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    records = _directory(file, size)
    if sum(record.packed for record in records) > size:
        raise Damage("its records are larger than the file")
    unchecked = not any(record.crc for record in records)  # of bytes that are not there the checksum is 0, too
    for record in records:
        start = _data(file, record)
        if start + record.size > size:
            raise Damage(f"record {_text(record.name)} reaches beyond its end")
        if not unchecked and _crc(file, start, record.size) != record.crc:
            raise Damage(f"record {_text(record.name)} has another checksum than was written")
    return not unchecked


def _directory(file: BinaryIO, size: int) -> list[_Record]:
    """The entries of the directory at the archive's end."""
    end = _read(file, size - 22, 22)
    if end[:4] != _END or end[20:] != b"\0\0":
        raise Damage("it does not end as it must: truncated, or its end is damaged")
    count, length, start = struct.unpack("<HII", end[10:20])
    last = size - 22  # where the directory ends
    locator = _read(file, last - 20, 20) if last >= 20 else b""
    if locator[:4] == _LOCATOR64:
        (last,) = struct.unpack("<Q", locator[8:16])
        end64 = _read(file, last, 56)
        if end64[:4] != _END64:
            raise Damage("its end is damaged")
        count, length, start = struct.unpack("<QQQ", end64[32:56])
    if start + length != last:
        raise Damage("its directory is not where its end says")
    data = _read(file, start, length)
    records, place = [], 0
    while place < length:
        record, place = _entry(data, place)
        records.append(record)
    if len(records) != count:
        raise Damage(f"its directory has {len(records):,} records, its end says {count:,}")
    if len({record.name.lower() for record in records}) != count:  # torch finds them so
        raise Damage("two of its records have one name")
    return records


def _entry(data: bytes, place: int) -> tuple[_Record, int]:
    """The entry there, and where the next one is."""
    fixed = data[place : place + 46]
    if len(fixed) < 46 or fixed[:4] != _ENTRY:
        raise Damage("its directory is damaged")
    crc, packed, size, names, extras, comments = struct.unpack("<IIIHHH", fixed[16:34])
    attributes, start = struct.unpack("<II", fixed[38:46])
    name = data[place + 46 : place + 46 + names]
    extra = data[place + 46 + names : place + 46 + names + extras]
    packed, size, start = _wide(packed, size, start, extra)
    if attributes & _FOLDER or name.endswith(b"/"):  # torch's reader would leave the memory of its bytes as it was
        raise Damage(f"record {_text(name)} is said to be a folder")
    return _Record(name, crc, size, packed, start, fixed[8:12]), place + 46 + names + extras + comments


def _wide(packed: int, size: int, start: int, extra: bytes) -> tuple[int, int, int]:
    """Numbers that need more than 32 bits stand in the extra field 1, in this order: size, packed, start."""
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
    """Where the bytes of a record begin, as its own header says."""
    head = _read(file, record.start, 30)
    if head[:4] != _HEAD:
        raise Damage(f"record {_text(record.name)} is not where its directory says")
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
            raise Damage("it ends too early")
        crc, size = zlib.crc32(block[:got], crc), size - got
    return crc


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    if start < 0:
        raise Damage("it is too short: truncated")
    end = file.seek(0, 2)
    if start + size > end:
        raise Damage("it is truncated, or its directory is damaged")
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise Damage("it ends too early")
    return data


def _text(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace"))
