"""Writes event files and original folders byte by byte, from the descriptions of the formats."""

import struct

HEADER3 = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-05-20 12:00:00 (TZ+0200)\r\n"
    b"#!END-HEADER\r\n"
)
HEADER2 = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)


def packet(events, kind=1, overflow=0, valid=None, source=1, size=8, at=4, capacity=None, number=None):
    """A packet of polarity events ``(t, x, y, p)`` or ``(t, x, y, p, valid)``; its header may get wrong values."""
    body = b""
    marked = 0
    for t, x, y, p, *rest in events:
        mark = rest[0] if rest else 1
        marked += mark
        body += struct.pack("<Ii", mark | p << 1 | y << 2 | x << 17, t)
    number = len(events) if number is None else number
    capacity = number if capacity is None else capacity
    header = (kind, source, size, at, overflow, capacity, number, marked if valid is None else valid)
    return struct.pack("<hhiiiiii", *header) + body


def aedat3(*packets, header=HEADER3):
    return header + b"".join(packets)


def aedat2(events, header=HEADER2):
    """The bytes of events ``(t, x, y, p)``, or ``(t, address)`` for a free choice of the address."""
    body = b""
    for t, *rest in events:
        address = rest[0] if len(rest) == 1 else rest[2] | rest[0] << 1 | rest[1] << 8
        body += struct.pack(">II", address, t)
    return header + body


def gesture_folder(root, recordings, train, test):
    """``recordings``: name without ending -> (bytes, [(class, start, end)])."""
    root.mkdir(parents=True, exist_ok=True)
    for name, (data, labels) in recordings.items():
        (root / f"{name}.aedat").write_bytes(data)
        lines = ["class,startTime_usec,endTime_usec", *(",".join(map(str, label)) for label in labels)]
        (root / f"{name}_labels.csv").write_text("\n".join(lines) + "\n")
    for part, names in (("train", train), ("test", test)):
        (root / f"trials_to_{part}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
    return root


def cifar10_dvs_folder(root, recordings):
    """``recordings``: class -> [bytes]."""
    for name, files in recordings.items():
        (root / name).mkdir(parents=True)
        for number, data in enumerate(files):
            (root / name / f"cifar10_{name}_{number}.aedat").write_bytes(data)
    return root
