"""Readers of the address-event files of the iniVation sensors: AEDAT 2.0 and AEDAT 3.1.

They are our own because no maintained package reads them (tried under Python 3.11): aedat 2.3 and dv-processing 2.0
refuse all but AEDAT 4, expelliarmus 1.1 has no AEDAT (and no wheel for 3.13), and tonic 1.7's readers failed on the
files they were given; what they stand on ignores packet types, valid marks, the timestamps' overflow and truncation.
Here a file is right as a whole, or a :class:`~sewsnn.errors.DataError` names it and the offset of what is wrong.

Source: https://docs.inivation.com/software/software-advanced-usage/file-formats, and DVS128 Gesture's README.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sewsnn.data.events import Events
from sewsnn.errors import DataError, UnreadableError
from sewsnn.files import open_regular

SIZE = 128  # pixels across of the DVS128
# Time may go back by less than the period of the DVS128's 14-bit counter: older hardware delivers a wrap late.
BACK_US = 2**14
MOST_BYTES = 2**31  # a recording of either data set has less than a tenth of it
_END = b"#!END-HEADER"
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _EVENT_SIZE = 1, 8


class Recording(NamedTuple):
    """What is in a file.

    Fields:
        events: in the order of time (stably sorted where it went back by less than ``BACK_US``).
        invalid: polarity events left out because they are marked as invalid (AEDAT 3.1).
        others: events of other kinds (external input, wraps, inertial sensor ...), left out.
        late: events that were moved to their place in time.
    """

    events: Events
    invalid: int
    others: int
    late: int


def read_aedat3(path: str | Path, width: int = SIZE, height: int = SIZE) -> Recording:
    """Polarity events of an AEDAT 3.1 file.

    After the header, packets: 28 bytes (type and source int16; event size, timestamp's offset in the event, timestamp
    overflow, capacity, number, number valid int32), then ``capacity`` events, of which ``number`` are used. A polarity
    event is 8 bytes: uint32 with valid in bit 0, polarity in bit 1, y in bits 2-16, x in bits 17-31; int32 timestamp.
    All little-endian. ``t = overflow << 31 | timestamp``.

    Raises:
        DataError: the file cannot be read or is not what it should be; names it and the offset.
    """
    data, start = _open(path, b"#!AER-DAT3.1")
    packets, others = _packets(path, data, start)
    numbers = np.array([packet.number for packet in packets], np.int64)
    parts = [np.frombuffer(data, "<u4", 2 * packet.number, packet.start) for packet in packets]
    words = np.concatenate(parts).reshape(-1, 2) if parts else np.zeros((0, 2), np.uint32)
    firsts = np.cumsum(numbers) - numbers  # of each packet, among all events
    starts = np.array([packet.start for packet in packets], np.int64)

    def offset(event: int) -> int:
        packet = int(np.searchsorted(firsts, event, "right")) - 1
        return int(starts[packet] + _EVENT_SIZE * (event - firsts[packet]))

    address, low = words[:, 0], words[:, 1]
    valid = (address & 1).astype(bool)
    _check_valid(path, packets, valid, firsts)
    x, y = address >> 17, (address >> 2) & 0x7FFF
    _refuse(path, (x >= width) & valid, offset, lambda j: f"x is {x[j]}, the sensor is {width} pixels wide")
    _refuse(path, (y >= height) & valid, offset, lambda j: f"y is {y[j]}, the sensor is {height} pixels high")
    _refuse(path, (low >> 31).astype(bool) & valid, offset, lambda j: f"timestamp {low[j]:#x} is negative")
    overflow = np.repeat(np.array([packet.overflow for packet in packets], np.int64), numbers)
    t = (overflow << 31) | low.astype(np.int64)
    kept = np.flatnonzero(valid)
    events = Events(t[kept], *(a[kept].astype(np.uint16) for a in (x, y)), (address[kept] >> 1 & 1).astype(np.uint8))
    events, late = _in_order(path, events, lambda j: offset(int(kept[j])))
    return Recording(events, len(valid) - len(kept), others, late)


def read_aedat2(path: str | Path) -> Recording:
    """Polarity events of an AEDAT 2.0 file of a DVS128.

    After the header, records of 8 bytes: uint32 address, uint32 timestamp, big-endian. Address: polarity in bit 0, x in
    bits 1-7, y in bits 8-14; bit 15 (or jAER's 31) marks an event of another kind. x, y and p are as they are in the
    file; see :mod:`sewsnn.data.cifar10_dvs` for how the sensor was held.

    The format has no counts and no checksum: a file cut between two records is whole, by itself.

    Raises:
        DataError: the file cannot be read or is not what it should be; names it and the offset.
    """
    data, start = _open(path, b"#!AER-DAT2.0")
    if (len(data) - start) % _EVENT_SIZE:
        end = len(data) - (len(data) - start) % _EVENT_SIZE
        raise _error(path, end, f"{len(data) - end} bytes are left, a record has {_EVENT_SIZE}; the file is truncated")
    words = np.frombuffer(data, ">u4", offset=start).astype(np.uint32).reshape(-1, 2)
    address = words[:, 0]
    other = (address & 0x80008000) != 0
    _refuse(
        path,
        (address > 0xFFFF) & ~other,
        lambda j: start + _EVENT_SIZE * j,
        lambda j: f"address {address[j]:#x}; a DVS128's has 16 bits",
    )
    kept = np.flatnonzero(~other)
    address = address[kept]
    fields = ((address >> 1 & 127).astype(np.uint16), (address >> 8 & 127).astype(np.uint16), address & 1)
    events = Events(words[kept, 1].astype(np.int64), *fields[:2], fields[2].astype(np.uint8))
    events, late = _in_order(path, events, lambda j: start + _EVENT_SIZE * int(kept[j]))
    return Recording(events, 0, len(other) - len(kept), late)


class _Packet(NamedTuple):
    start: int  # of its events; its header is before
    number: int
    valid: int
    overflow: int


def _open(path: str | Path, version: bytes) -> tuple[bytes, int]:
    """The file's bytes, and where its header ends."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size <= MOST_BYTES else b""
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    if size > MOST_BYTES:
        raise _error(path, MOST_BYTES, f"the file has {size:,} bytes; recordings of more than 2 GiB are not read")
    closed = version.endswith(b"3.1")  # the header has a last line
    start = 0
    while data[start : start + 1] == b"#" or start == 0:
        end = data.find(b"\n", start) + 1
        line = data[start:end].rstrip(b"\r\n")
        if start == 0 and line != version:
            found = data[: len(version)]
            raise _error(path, 0, f"the first line must be {version.decode()}, the file begins with {found!r}")
        if not end:
            raise _error(path, start, "a header line does not end; the file is truncated or damaged")
        # A damaged line end would join the line and what follows it, unseen.
        if any(byte < 32 and byte != 9 for byte in line):
            raise _error(path, start, "a header line holds control characters; the file is damaged")
        start = end
        if closed and line == _END:
            return data, start
    if closed:
        raise _error(path, start, f"the header ends without its last line, {_END.decode()}; truncated or damaged")
    return data, start


def _packets(path: str | Path, data: bytes, start: int) -> tuple[list[_Packet], int]:
    """The polarity packets, and how many events there are in others."""
    packets, others = [], 0
    while start < len(data):
        if len(data) - start < _PACKET.size:
            raise _error(path, start, f"{len(data) - start} bytes are left, a packet's header has {_PACKET.size}")
        kind, source, size, at, overflow, capacity, number, valid = _PACKET.unpack_from(data, start)
        if min(kind, source, overflow, capacity, number, valid) < 0 or size < 8 or not 4 <= at <= size - 4:
            raise _error(path, start, f"no packet's header: {_described(data, start)}")
        if not valid <= number <= capacity:
            raise _error(path, start, f"{valid} valid of {number} events in a packet for {capacity}")
        if kind == _POLARITY and (size, at) != (_EVENT_SIZE, 4):
            raise _error(path, start, f"polarity events of {size} bytes with the timestamp at {at}, not 8 and 4")
        first = start + _PACKET.size
        end = first + capacity * size
        if end > len(data):
            raise _error(
                path, start, f"a packet of {capacity:,} events of {size} bytes, {len(data) - first:,} bytes are left"
            )
        # Otherwise a damaged capacity could hide the packets that follow.
        if any(data[first + number * size : end]):
            raise _error(path, first + number * size, f"a packet has more than its {number} events")
        if kind == _POLARITY:
            packets.append(_Packet(first, number, valid, overflow))
        else:
            others += number
        start = end
    return packets, others


def _check_valid(path: str | Path, packets: list[_Packet], valid: np.ndarray, firsts: np.ndarray) -> None:
    """Each packet says how many of its events are valid."""
    marked = np.concatenate([[0], np.cumsum(valid)])
    for packet, first in zip(packets, firsts.tolist(), strict=True):
        found = marked[first + packet.number] - marked[first]
        if found != packet.valid:
            raise _error(path, packet.start, f"{found} events are marked as valid, the packet says {packet.valid}")


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
