"""Damage in files of ``torch.save``: they are zip archives with a CRC-32 for each record, which ``torch.load`` does not
compare. A flipped bit in a weight would load as another number."""

import errno
import struct
import zipfile
import zlib
from typing import BinaryIO

_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # up to the lengths of name and extra field
_CHUNK = 1 << 22


def is_archive(file: BinaryIO) -> bool:
    """Whether an open file is a zip archive; others are what torch wrote before 1.6, without any checksum."""
    file.seek(0)
    # The first record's header, or, where that is damaged, what the archive ends with.
    found = file.read(len(_SIGNATURE)) == _SIGNATURE or zipfile.is_zipfile(file)
    file.seek(0)
    return found


def find_damage(file: BinaryIO) -> str | None:
    """What is damaged in the open archive, or None: every record's bytes have the CRC-32 written with them, and both
    headers of each record say the same.

    An archive in which every CRC-32 is 0 was written with ``torch.serialization.set_crc32_options(False)`` and tells
    nothing. Raises OSError if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if not records:
                return "it has no records"
            if all(record.CRC == 0 for record in records) and any(record.file_size for record in records):
                return None
            names = set()
            for record in records:
                if record.filename in names:
                    return f"two records are called {record.filename}"
                names.add(record.filename)
                if problem := _damage_of(archive, file, record):
                    return f"record {record.filename}: {problem}"
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a seek to where a damaged offset leads
            raise
        return "an offset leads out of the file"
    except MemoryError:
        raise
    except Exception as error:  # BadZipFile, struct.error, zlib.error, NotImplementedError, OverflowError ...
        return str(error) or type(error).__name__
    finally:
        file.seek(0)
    return None


def _damage_of(archive: zipfile.ZipFile, file: BinaryIO, record: zipfile.ZipInfo) -> str | None:
    if record.is_dir() or record.external_attr & 0x10:  # of a folder torch would take nothing, of any length
        return "it is marked as a folder"
    file.seek(record.header_offset)
    head = file.read(_LOCAL_HEADER.size)
    if len(head) != _LOCAL_HEADER.size or not head.startswith(_SIGNATURE):
        return "its header is damaged"
    _, _, flags, method, _, _, crc, packed, size, *_ = _LOCAL_HEADER.unpack(head)
    if (flags, method) != (record.flag_bits, record.compress_type):
        return "its two headers differ"
    late = flags & 8  # torch writes these three after the data, and zeros here
    known = not late and 0xFFFFFFFF not in (packed, size)
    if known and (crc, packed, size) != (record.CRC, record.compress_size, record.file_size):
        return "its two headers differ"
    if method == zipfile.ZIP_STORED and record.compress_size != record.file_size:
        return "its two sizes differ"
    found, length = 0, 0
    with archive.open(record) as data:  # compares names; the CRC is compared below, of empty records too
        data._expected_crc = None
        while chunk := data.read(_CHUNK):
            found, length = zlib.crc32(chunk, found), length + len(chunk)
    if length != record.file_size:
        return f"{length:,} bytes of {record.file_size:,} are there"
    return None if found == record.CRC else "its bytes do not have the checksum that was written with them"
