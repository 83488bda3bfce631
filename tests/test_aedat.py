"""AEDAT 2.0 and 3.1: a reader returns all events or raises an error that names file and offset."""

import random
import struct
from collections import Counter

import numpy as np
import pytest
from aedat_files import HEADER2, HEADER3, aedat2, aedat3, packet

from sewsnn.data.aedat import BACK_US, read_aedat2, read_aedat3
from sewsnn.errors import DataError

EVENTS = [(10, 0, 0, 0), (10, 127, 3, 1), (25, 5, 127, 1), (900, 64, 65, 0)]
LATER = [(3, 1, 2, 1, 1), (4, 9, 9, 0, 0), (2**31 - 1, 126, 125, 0, 1)]


@pytest.fixture
def write(tmp_path):
    def to_file(data):
        path = tmp_path / "a.aedat"
        path.write_bytes(data)
        return path

    return to_file


def as_tuples(events):
    assert events.t.dtype == np.int64
    return list(zip(*(field.tolist() for field in events), strict=True))


def test_aedat3_byte_for_byte(write):
    """Cases: packets, overflow, invalid events, packets of other types, a larger capacity, a packet without events."""
    imu = struct.pack("<hhiiiiii", 3, 1, 36, 4, 0, 2, 2, 2) + bytes(range(72))
    data = aedat3(packet(EVENTS), imu, packet([]), packet(LATER, overflow=3), packet([], kind=0))
    found = read_aedat3(write(data))
    expected = EVENTS + [(t + 3 * 2**31, x, y, p) for t, x, y, p, valid in LATER if valid]
    assert as_tuples(found.events) == expected
    assert (found.invalid, found.others, found.late) == (1, 2, 0)
    roomy = packet(EVENTS, capacity=6) + bytes(16)
    assert as_tuples(read_aedat3(write(aedat3(roomy, packet(EVENTS[-1:])))).events) == EVENTS + EVENTS[-1:]
    assert as_tuples(read_aedat3(write(HEADER3)).events) == []
    wide = [(5, 345, 259, 1)]
    assert as_tuples(read_aedat3(write(aedat3(packet(wide))), 346, 260).events) == wide


def test_aedat2_byte_for_byte(write):
    other = [(11, 1 << 15), (12, 0xFFFF8001), (13, 1 << 31)]
    found = read_aedat2(write(aedat2(EVENTS[:2] + other + EVENTS[2:])))
    assert as_tuples(found.events) == EVENTS and (found.invalid, found.others, found.late) == (0, 3, 0)
    late = read_aedat2(write(aedat2([(2**31 + 5, 35, 1, 0)])))  # 0x23 is "#"
    assert as_tuples(late.events) == [(2**31 + 5, 35, 1, 0)]
    assert as_tuples(read_aedat2(write(HEADER2)).events) == []


def test_time_that_goes_back_a_little_is_sorted(write):
    """Time may go back by less than the period of the sensor's counter. Events with equal times keep their order."""
    base = 10**6
    events = [(base, 1, 1, 0), (base + 7, 2, 1, 0), (base + 8 - BACK_US, 3, 1, 0), (base, 4, 1, 0), (base + 9, 5, 1, 0)]
    for read, data in ((read_aedat2, aedat2(events)), (read_aedat3, aedat3(packet(events[:2]), packet(events[2:])))):
        found = read(write(data))
        assert found.events.x.tolist() == [3, 1, 4, 2, 5] and found.late == 2
        assert (np.diff(found.events.t) >= 0).all()


START3, START2 = len(HEADER3), len(HEADER2)


@pytest.mark.parametrize(
    "data, message, offset",
    [
        (b"", "the first line must be #!AER-DAT3.1", 0),
        (b"#", "the first line must be", 0),
        (HEADER2 + bytes(8), r"the first line must be #!AER-DAT3.1, but the file begins with b'#!AER-DAT2.0'", 0),
        (HEADER3[:20], "a header line has no end", 14),
        (HEADER3[:-2], "a header line has no end", START3 - 14),
        (HEADER3[:-14] + packet(EVENTS), "the header ends without the line", START3 - 14),
        (HEADER3.replace(b"RAW\r\n", b"RAW\x00\n"), "control characters", 14),
        (aedat3(packet(EVENTS)[:27]), "27 bytes are left, but a packet header has 28", START3),
        (aedat3(packet(EVENTS)[:-1]), "a packet has 4 events of 8 bytes, but 31 bytes are left", START3),
        (aedat3(packet(EVENTS), packet(EVENTS)[:-8]), "a packet has 4 events", START3 + 60),
        (aedat3(packet([], number=2**31 - 1, valid=0)), "a packet has 2,147,483,647 events", START3),
        (aedat3(packet(EVENTS, kind=-1)), "not a packet header: type -1", START3),
        (aedat3(packet(EVENTS, size=0)), "not a packet header", START3),
        (aedat3(packet(EVENTS, size=-8)), "not a packet header", START3),
        (aedat3(packet([], kind=2, size=8, at=8)), "not a packet header", START3),
        (aedat3(packet(EVENTS, overflow=-1)), "not a packet header.*overflow -1", START3),
        (aedat3(packet([], capacity=-1)), "not a packet header", START3),
        (aedat3(packet(EVENTS, size=12)), "polarity events have 12 bytes", START3),
        (aedat3(packet(EVENTS, capacity=3)), "a packet with 4 valid of 4 events has a capacity of 3", START3),
        (aedat3(packet(EVENTS, valid=5)), "5 valid of 4 events", START3),
        (aedat3(packet(EVENTS, valid=3)), "4 events are marked as valid, but the packet declares 3", START3 + 28),
        (aedat3(packet(EVENTS, number=3, capacity=4, valid=3)), "a packet has data after its 3 events", START3 + 52),
        (aedat3(packet([(1, 128, 0, 1)])), "x is 128, but the sensor is 128 pixels wide", START3 + 28),
        (aedat3(packet(EVENTS), packet([(901, 0, 0, 0), (902, 0, 4095, 1)])), "y is 4095", START3 + 60 + 36),
        (aedat3(packet([(-5, 0, 0, 0)])), "timestamp 0xfffffffb is negative", START3 + 28),
        (
            aedat3(packet([(40, 1, 1, 1, 0), (50000, 1, 1, 1)]), packet([(5, 0, 0, 0)])),
            "time goes back from 50000 to 5 us",
            START3 + 44 + 28,
        ),
        (aedat3(packet([(9, 1, 1, 1)], overflow=1), packet([(9, 1, 1, 1)])), "time goes back", START3 + 36 + 28),
    ],
)
def test_damaged_aedat3_is_refused(write, data, message, offset):
    with pytest.raises(DataError, match=rf"a\.aedat: .*{message}.*\(at offset {offset:,}\)$") as caught:
        read_aedat3(path := write(data))
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    "data, message, offset",
    [
        (HEADER3, "the first line must be #!AER-DAT2.0", 0),
        (aedat2(EVENTS)[:-3], "5 bytes are left, but a record has 8", START2 + 24),
        (HEADER2[:-5], "a header line has no end", HEADER2.rindex(b"#")),
        (aedat2([*EVENTS, (901, 1 << 16)]), "address 0x10000 has more than the 16 bits", START2 + 32),
        (
            aedat2([*EVENTS[2:3], (10**6, 1 << 15), (10**5, 1, 2, 1), (9, 5, 4, 0)]),
            "goes back from 100000",
            START2 + 24,
        ),
        (aedat2(EVENTS, HEADER2[:-1] + b" "), "control characters", HEADER2.rindex(b"#")),
    ],
)
def test_damaged_aedat2_is_refused(write, data, message, offset):
    with pytest.raises(DataError, match=rf"a\.aedat: .*{message}.*\(at offset {offset:,}\)$"):
        read_aedat2(write(data))


def test_files_that_cannot_be_read_are_named(tmp_path):
    for read in (read_aedat2, read_aedat3):
        with pytest.raises(DataError, match=f"cannot read {tmp_path}/none: No such file"):
            read(tmp_path / "none")
        with pytest.raises(DataError, match=f"cannot read {tmp_path}: Is a directory"):
            read(tmp_path)
        with open(tmp_path / "huge", "wb") as file:
            file.write(HEADER3)
            file.truncate(2**31 + 1)
        with pytest.raises(DataError, match="has 2,147,483,649 bytes; recordings of more than 2 GiB are not supported"):
            read(tmp_path / "huge")


def test_no_single_flipped_bit_loses_an_event_unseen(write):
    """Flips every bit of the packets of an AEDAT 3.1 file: an error, or all events are read and at most one changed."""
    data = aedat3(packet(EVENTS), packet([], kind=0), packet(LATER), packet([(7, 1, 2, 3 & 1)], overflow=1))
    total = len(EVENTS) + len(LATER) + 1
    whole = Counter(as_tuples(read_aedat3(write(data)).events))
    refused = 0
    for bit in range(8 * (START3 - 16), 8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read_aedat3(write(bytes(flipped)))
        except DataError as error:
            assert "(at offset" in str(error)
            refused += 1
            continue
        assert len(found.events.t) + found.invalid + found.others == total
        if not found.others:
            assert sum((whole - Counter(as_tuples(found.events))).values()) <= 1
    assert refused > 8 * 60


@pytest.mark.parametrize("seed", range(4))
def test_mutations_are_refused_or_whole(write, seed):
    """Truncations, insertions, random bytes and flips; AEDAT 2.0 files keep one event per record."""
    generator = random.Random(seed)
    files = {
        read_aedat3: aedat3(packet(EVENTS), packet([], kind=0), packet(LATER)),
        read_aedat2: aedat2([*EVENTS, (901, 1 << 15), (902, 1, 1, 0)]),
    }
    for _ in range(250):
        for read, data in files.items():
            mutated = bytearray(data)
            for _ in range(generator.randint(1, 3)):
                place = generator.randrange(len(mutated) or 1)
                kind = generator.randrange(4)
                if kind == 0:
                    del mutated[place:]
                elif kind == 1:
                    mutated[place:place] = generator.randbytes(generator.randint(1, 40))
                elif kind == 2:
                    mutated[place : place + 4] = struct.pack("<i", generator.choice([-1, 0, 1, 2**31 - 1, 2**16]))
                elif mutated:
                    mutated[place] ^= 1 << generator.randrange(8)
            try:
                found = read(write(bytes(mutated)))
            except DataError as error:
                assert "a.aedat" in str(error) and "(at offset" in str(error)
                continue
            assert (np.diff(found.events.t) >= 0).all() and max(found.events.x, default=0) < 128
            if read is read_aedat2:
                header = mutated[: len(mutated) - 8 * (len(found.events.t) + found.others)]
                assert header.endswith(b"\n") and all(line[:1] == b"#" for line in header.splitlines())
