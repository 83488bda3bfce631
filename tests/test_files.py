"""Messages stay short, and only regular files are opened."""

import os
import time

import pytest

from sewsnn.errors import short
from sewsnn.files import open_regular, write_text
from sewsnn.train.metrics import write_corrupt


def test_a_value_in_a_message_is_one_short_line():
    nested = ["lol"]
    for _ in range(40):
        nested = [nested] * 9
    cyclic = {}
    cyclic["a"] = cyclic
    start = time.process_time()
    for value in (nested, cyclic, "a\n" * 1000, 10**5000, b"\0" * 999, {i: i for i in range(9999)}):
        assert len(short(value)) <= 80 and "\n" not in short(value)
    assert time.process_time() - start < 5
    assert (short("off"), short(1e300), short([1, 2])) == ("'off'", "1e+300", "[1, 2]")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("fifo", "a FIFO"),
        (".", "Is a directory"),
        ("loop", "levels of symbolic links"),
        ("none", "No such"),
    ):
        with pytest.raises(OSError, match=words):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="device"):
        open_regular("/dev/zero")


def test_names_that_are_not_utf8_are_written_as_they_are(tmp_path):
    """corrupt.txt lists the samples that were left out, at the end of an epoch; a resume keeps its lines."""
    name = os.fsdecode(b"n\xff\xc3") + " is \x85 no image"
    for _ in range(2):
        assert write_corrupt(tmp_path / "corrupt.txt", {name}) == {name}
    assert (tmp_path / "corrupt.txt").read_bytes() == b"n\xff\xc3 is \xc2\x85 no image\n"
    write_text(tmp_path / "half", "a \ud800 of no name")
    assert (tmp_path / "half").read_text() == "a \\ud800 of no name"
