"""Readers for the address-event files of iniVation sensors: AEDAT 2.0 and AEDAT 3.1.

sewsnn has its own readers because no maintained package reads these files (tested under Python 3.11): aedat 2.3 and
dv-processing 2.0 read only AEDAT 4, expelliarmus 1.1 does not read AEDAT (and has no wheel for Python 3.13), and the
readers of tonic 1.7 failed on the test files; the code they build on ignores packet types, valid marks, timestamp
overflow and truncation. The readers here either return a whole file or raise a :class:`~sewsnn.errors.DataError` that
names the file and the byte offset of the error.

Source: https://docs.inivation.com/software/software-advanced-usage/file-formats, and the README of DVS128 Gesture.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sewsnn.data.events import Events
from sewsnn.errors import DataError, UnreadableError
from sewsnn.files import open_regular

SIZE = 128  # width and height of the DVS128 in pixels
# A timestamp may decrease by less than one period of the DVS128's 14-bit counter: older hardware reports a wrap late.
BACK_US = 2**14
MOST_BYTES = 2**31  # recordings of both data sets are less than a tenth of this
_END = b"#!END-HEADER"
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _EVENT_SIZE = 1, 8


class Recording(NamedTuple):
    """The content of one file.

    Attributes:
        events: the valid polarity events, sorted by time. Where timestamps decrease by less than ``BACK_US``, a stable
            sort restores the order.
        invalid: number of polarity events that are marked as invalid (AEDAT 3.1 only) and therefore left out.
        others: number of events of other types (external input, wraps, inertial sensor, ...), which are left out.
        late: number of events that the sort moved.
    """

    events: Events
    invalid: int
    others: int
    late: int


def read_aedat3(path: str | Path, width: int = SIZE, height: int = SIZE) -> Recording:
    """Reads the polarity events of an AEDAT 3.1 file.

    The file is a header followed by packets. A packet has a header of 28 bytes (type and source as int16; event size,
    offset of the timestamp in an event, timestamp overflow, capacity, number of events, number of valid events as
    int32) and then ``capacity`` events; only the first ``number`` are used. A polarity event has 8 bytes: a uint32
    with the valid mark in bit 0, the polarity in bit 1, y in bits 2-16 and x in bits 17-31, then an int32 timestamp.
    All numbers are little-endian. The time is ``t = overflow << 31 | timestamp``, in microseconds.

    Args:
        path: the file.
        width: pixels of the sensor in x (default 128).
        height: pixels of the sensor in y (default 128).

    Returns:
        A :class:`Recording`.

    Raises:
        DataError: the file cannot be read or is damaged; the message names the file and the byte offset.
    """
    data, start = _open(path, b"#!AER-DAT3.1")
    packets, others = _packets(path, data, start)
    numbers = np.array([packet.number for packet in packets], np.int64)
    parts = [np.frombuffer(data, "<u4", 2 * packet.number, packet.start) for packet in packets]
    words = np.concatenate(parts).reshape(-1, 2) if parts else np.zeros((0, 2), np.uint32)
    firsts = np.cumsum(numbers) - numbers  # index of each packet's first event
    starts = np.array([packet.start for packet in packets], np.int64)

    def offset(event: int) -> int:
        packet = int(np.searchsorted(firsts, event, "right")) - 1
        return int(starts[packet] + _EVENT_SIZE * (event - firsts[packet]))

    address, low = words[:, 0], words[:, 1]
    valid = (address & 1).astype(bool)
    _check_valid(path, packets, valid, firsts)
    x, y = address >> 17, (address >> 2) & 0x7FFF
    _refuse(path, (x >= width) & valid, offset, lambda j: f"x is {x[j]}, but the sensor is {width} pixels wide")
    _refuse(path, (y >= height) & valid, offset, lambda j: f"y is {y[j]}, but the sensor is {height} pixels high")
    _refuse(path, (low >> 31).astype(bool) & valid, offset, lambda j: f"timestamp {low[j]:#x} is negative")
    overflow = np.repeat(np.array([packet.overflow for packet in packets], np.int64), numbers)
    t = (overflow << 31) | low.astype(np.int64)
    kept = np.flatnonzero(valid)
    events = Events(t[kept], *(a[kept].astype(np.uint16) for a in (x, y)), (address[kept] >> 1 & 1).astype(np.uint8))
    events, late = _in_order(path, events, lambda j: offset(int(kept[j])))
    return Recording(events, len(valid) - len(kept), others, late)


def read_aedat2(path: str | Path) -> Recording:
    """Reads the polarity events of an AEDAT 2.0 file from a DVS128.

    Records of 8 bytes follow the header: a uint32 address and a uint32 timestamp in microseconds, both big-endian. The
    address has the polarity in bit 0, x in bits 1-7 and y in bits 8-14. Bit 15 (or bit 31, set by jAER) marks events of
    other types. x, y and p are returned as stored; :mod:`sewsnn.data.cifar10_dvs` converts them for the orientation of
    its sensor.

    The format has neither counts nor a checksum, so a file that was cut between two records cannot be recognised as
    truncated.

    Args:
        path: the file.

    Returns:
        A :class:`Recording`; ``invalid`` is always 0.

    Raises:
        DataError: the file cannot be read or is damaged; the message names the file and the byte offset.
    """
    data, start = _open(path, b"#!AER-DAT2.0")
    if (len(data) - start) % _EVENT_SIZE:
        end = len(data) - (len(data) - start) % _EVENT_SIZE
        raise _error(
            path, end, f"{len(data) - end} bytes are left, but a record has {_EVENT_SIZE}; the file is truncated"
        )
    words = np.frombuffer(data, ">u4", offset=start).astype(np.uint32).reshape(-1, 2)
    address = words[:, 0]
    other = (address & 0x80008000) != 0
    _refuse(
        path,
        (address > 0xFFFF) & ~other,
        lambda j: start + _EVENT_SIZE * j,
        lambda j: f"address {address[j]:#x} has more than the 16 bits of a DVS128 address",
    )
    kept = np.flatnonzero(~other)
    address = address[kept]
    fields = ((address >> 1 & 127).astype(np.uint16), (address >> 8 & 127).astype(np.uint16), address & 1)
    events = Events(words[kept, 1].astype(np.int64), *fields[:2], fields[2].astype(np.uint8))
    events, late = _in_order(path, events, lambda j: start + _EVENT_SIZE * int(kept[j]))
    return Recording(events, 0, len(other) - len(kept), late)


class _Packet(NamedTuple):
    start: int  # offset of the first event, after the packet's header
    number: int
    valid: int
    overflow: int


def _open(path: str | Path, version: bytes) -> tuple[bytes, int]:
    """Returns the bytes of the file and the offset at which its header ends."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size <= MOST_BYTES else b""
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    if size > MOST_BYTES:
        raise _error(path, MOST_BYTES, f"the file has {size:,} bytes; recordings of more than 2 GiB are not supported")
    closed = version.endswith(b"3.1")  # the header of this version has an end line
    start = 0
    while data[start : start + 1] == b"#" or start == 0:
        end = data.find(b"\n", start) + 1
        line = data[start:end].rstrip(b"\r\n")
        if start == 0 and line != version:
            found = data[: len(version)]
            raise _error(path, 0, f"the first line must be {version.decode()}, but the file begins with {found!r}")
        if not end:
            raise _error(path, start, "a header line has no end; the file is truncated or damaged")
        # Without this check a damaged line end would silently join two lines.
        if any(byte < 32 and byte != 9 for byte in line):
            raise _error(path, start, "a header line holds control characters; the file is damaged")
        start = end
        if closed and line == _END:
            return data, start
    if closed:
        raise _error(path, start, f"the header ends without the line {_END.decode()}; the file is truncated or damaged")
    return data, start


def _packets(path: str | Path, data: bytes, start: int) -> tuple[list[_Packet], int]:
    """Returns the polarity packets, and the number of events in packets of other types."""
    packets, others = [], 0
    while start < len(data):
        if len(data) - start < _PACKET.size:
            raise _error(
                path,
                start,
                f"{len(data) - start} bytes are left, but a packet header has {_PACKET.size}; the file is truncated",
            )
        kind, source, size, at, overflow, capacity, number, valid = _PACKET.unpack_from(data, start)
        if min(kind, source, overflow, capacity, number, valid) < 0 or size < 8 or not 4 <= at <= size - 4:
            raise _error(path, start, f"this is not a packet header: {_described(data, start)}")
        if not valid <= number <= capacity:
            raise _error(path, start, f"a packet with {valid} valid of {number} events has a capacity of {capacity}")
        if kind == _POLARITY and (size, at) != (_EVENT_SIZE, 4):
            raise _error(
                path,
                start,
                f"polarity events have {size} bytes with the timestamp at byte {at}; expected 8 bytes and byte 4",
            )
        first = start + _PACKET.size
        end = first + capacity * size
        if end > len(data):
            raise _error(
                path,
                start,
                f"a packet has {capacity:,} events of {size} bytes, but {len(data) - first:,} bytes are left",
            )
        # Without this check a damaged capacity could hide the packets that follow.
        if any(data[first + number * size : end]):
            raise _error(path, first + number * size, f"a packet has data after its {number} events")
        if kind == _POLARITY:
            packets.append(_Packet(first, number, valid, overflow))
        else:
            others += number
        start = end
    return packets, others


def _check_valid(path: str | Path, packets: list[_Packet], valid: np.ndarray, firsts: np.ndarray) -> None:
    """Compares the number of valid events that each packet declares with its valid marks."""
    marked = np.concatenate([[0], np.cumsum(valid)])
    for packet, first in zip(packets, firsts.tolist(), strict=True):
        found = marked[first + packet.number] - marked[first]
        if found != packet.valid:
            raise _error(
                path, packet.start, f"{found} events are marked as valid, but the packet declares {packet.valid}"
            )


def _in_order(path: str | Path, events: Events, offset) -> tuple[Events, int]:
    t = events.t
    if not len(t) or (np.diff(t) >= 0).all():
        return events, 0
    latest = np.maximum.accumulate(t)
    _refuse(path, latest - t >= BACK_US, offset, lambda j: f"time goes back from {latest[j]} to {t[j]} us")
    order = np.argsort(t, kind="stable")
    return Events(*(field[order] for field in events)), int((t < latest).sum())


def _refuse(path: str | Path, wrong: np.ndarray, offset, describe) -> None:
    if wrong.any():
        j = int(wrong.argmax())
        raise _error(path, offset(j), describe(j))


def _described(data: bytes, start: int) -> str:
    names = ("type", "source", "size", "timestamp's offset", "overflow", "capacity", "number", "valid")
    return ", ".join(f"{name} {value}" for name, value in zip(names, _PACKET.unpack_from(data, start), strict=True))


def _error(path: str | Path, offset: int, text: str) -> DataError:
    return DataError(f"{path}: {text} (at offset {offset:,})", str(path))
