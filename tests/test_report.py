"""Reports of ``sewsnn analyze``: all files or none, on a full disk, after a signal and with any name."""

import contextlib
import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from runs import CONFIG, PROCESS
from small_run import names

from sewsnn.errors import UserError
from sewsnn.experiments import report as module
from sewsnn.experiments.drawing import drawing
from sewsnn.experiments.report import Finding, Report, code, escaped, markdown_table, percent, printable

FILES = ["r-curve.png", "r-curve.svg", "r-data.csv", "r-more.csv", "r.md"]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def filled(folder, value=1.0):
    """A report with a figure and two tables that depend on ``value``."""
    report = Report("r", "Title", folder, ["network: x"])
    with drawing() as (figure, axes):
        axes[0, 0].plot([0, 1], [0, value])
        report.figure("curve", figure, "A curve [of x]. Its values have no unit.")
    report.table("data", {"x": "the place", "y": "the value"}, [{"x": 1, "y": value}, {"x": 2}])
    report.table("more", {"z": "another value"}, [{"z": -value}])
    report.say("Text.")
    return report


def content(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


def test_what_is_written(tmp_path):
    report = filled(tmp_path / "new" / "folder")
    report.find("A claim.", True, "numbers")
    report.find("Another.", False, "others")
    report.find("A third.", None, "none")
    report.show(("a", "b"), [("x", 1), ("y | z", "2\n3")])
    assert not list(tmp_path.iterdir()), "nothing before write()"
    assert report.write("sewsnn analyze 'x`y'") == tmp_path / "new" / "folder" / "r.md"
    found = content(tmp_path / "new" / "folder")
    assert list(found) == FILES and found["r-curve.png"].startswith(b"\x89PNG") and b"<svg" in found["r-curve.svg"]
    assert found["r-data.csv"] == b"x,y\n1,1.0\n2,\n" and found["r-more.csv"] == b"z\n-1.0\n"
    parts = found["r.md"].decode().split("\n\n")
    assert parts[0] == "# Title" and parts[-1] == "- `z`: another value\n"
    about = parts[1].splitlines()
    assert about[:2] == ["- command: `` sewsnn analyze 'x`y' ``", "- network: x"] and about[2].startswith("- machine: ")
    assert parts[2:4] == [
        "## What is seen",
        "- A claim. Holds: numbers\n- Another. **Does not hold**: others\n- A third. Undecided: none",
    ]
    assert parts[4:8] == [
        "## Figures and numbers",
        "![A curve (of x)](r-curve.png)",
        "*A curve [of x]. Its values have no unit.*",
        "Text.",
    ]
    assert parts[8] == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y \\| z | 2 3 |"
    assert parts[9:12] == [
        "## Columns of the data files",
        "[r-data.csv](r-data.csv):",
        "- `x`: the place\n- `y`: the value",
    ]


def test_a_row_needs_known_columns(tmp_path):
    with pytest.raises(ValueError, match="unexplained"):
        Report("r", "Title", tmp_path).table("data", {"x": "the place"}, [{"x": 1, "unexplained": 2}])


# ---- all files or none


def failing(monkeypatch, name, k, error=FULL):
    """Makes call k of a function that writes raise the error, once; returns the number of calls so far."""
    calls = []

    def counted():
        calls.append(name)
        if len(calls) == k + 1:
            raise error

    if name == "write":

        class File(io.FileIO):
            def write(self, data):
                super().write(data[: len(data) // 2])
                counted()
                super().write(data[len(data) // 2 :])

        monkeypatch.setattr(module, "open", File, raising=False)
        return calls
    real = getattr(os, name)

    def fails(*args, **options):
        counted()
        return real(*args, **options)

    monkeypatch.setattr(os, name, fails)
    return calls


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("earlier", ["none", "all", "some"])
@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_disk_that_becomes_full_at_any_file(name, earlier, links, tmp_path, monkeypatch):
    """Whichever call fails, the files are those from before, and a folder that was created is gone again."""
    folder = tmp_path / "deep" / "folder"
    if earlier != "none":
        filled(folder, 1.0).write()
        (folder / "other").write_text("kept")
    if earlier == "some":  # the others are new
        (folder / "r-curve.png").unlink()
        (folder / "r-more.csv").unlink()
    before = content(folder) if earlier != "none" else None
    if not links:
        monkeypatch.setattr(os, "link", lambda *args, **options: os.stat("/nothing"))
    report = filled(folder, 2.0)
    for k, file in enumerate(["r-curve.png", "r-curve.svg", "r-data.csv", "r-more.csv", "r.md"]):
        with monkeypatch.context() as patch:
            failing(patch, name, k)
            with pytest.raises(UserError) as caught, report:
                report.write()
        assert str(caught.value) == f"cannot write {folder / file}: {os.strerror(errno.ENOSPC)}"
        if before is None:
            assert not list(tmp_path.iterdir())
        else:
            assert content(folder) == before
    with monkeypatch.context() as patch:
        calls = failing(patch, name, 5)
        report.write()
    assert len(calls) == 5 and names(folder) == sorted({*FILES, *(before or ())})
    assert content(folder)["r-more.csv"] == b"z\n-2.0\n" and content(folder).get("other", b"kept") == b"kept"


def test_a_disk_without_room_for_a_folder(tmp_path, monkeypatch):
    report = filled(tmp_path / "deep" / "folder")
    for k in range(5):  # the folder, whose parent is missing; its parent; the folder; two temporary ones
        with monkeypatch.context() as patch:
            failing(patch, "mkdir", k)
            with pytest.raises(UserError, match=r"^cannot write .*: No space left on device$"), report:
                report.write()
        assert not list(tmp_path.iterdir())
    failing(monkeypatch, "mkdir", 5)
    report.write()


def test_copies_that_do_not_fit_on_the_disk(tmp_path, monkeypatch):
    """Without hard links the earlier files are copied before any is replaced."""
    filled(tmp_path, 1.0).write()
    before = content(tmp_path)

    def full(*args, **options):
        raise FULL

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(UserError, match=r"^cannot write .*r-curve.png: No space"):
        filled(tmp_path, 2.0).write()
    assert content(tmp_path) == before


def test_an_earlier_file_that_is_a_link_stays_one(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "r-data.csv").symlink_to("target")
    failing(monkeypatch, "replace", 4)
    with pytest.raises(UserError, match=r"^cannot write .*r\.md: No space"):
        filled(tmp_path).write()
    assert names(tmp_path) == ["r-data.csv", "target"]
    assert (tmp_path / "r-data.csv").is_symlink() and (tmp_path / "r-data.csv").read_text() == "kept"


LIMITED = """
import resource, sys
from sewsnn.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def test_a_real_limit_on_the_size_of_a_file(tmp_path):
    """The PNG is larger than the limit, all other files are smaller."""
    words = ["analyze", "rates", str(CONFIG), "--blocks", "[1]", "--widths", "[2]", "--T", "1", "--threads", "1"]
    words += ["--analysis.batches", "1", "--model.name", "spiking_resnet"]
    command = [sys.executable, "-c", LIMITED, "60000", *words]
    (tmp_path / "old").mkdir()
    for name in ("rates-blocks.csv", "rates.md"):
        (tmp_path / "old" / name).write_text("an earlier report")
    before = content(tmp_path / "old")
    processes = [
        subprocess.Popen([*command, "--output", str(tmp_path / folder)], stderr=subprocess.PIPE, text=True, **PROCESS)
        for folder in ("old", "new/deeper")
    ]
    for process, folder in zip(processes, ("old", "new/deeper"), strict=True):
        _, err = process.communicate(timeout=120)
        path = tmp_path / folder / "rates-blocks.png"
        assert process.returncode == 1
        assert err.splitlines()[-1] == f"sewsnn: error: cannot write {path}: {os.strerror(errno.EFBIG)}", err
    assert names(tmp_path) == ["old"] and content(tmp_path / "old") == before


# ---- signals


@contextlib.contextmanager
def handled(number):
    """Signals raise InterruptedError, as Ctrl-C raises KeyboardInterrupt."""

    def stop(*args):
        raise InterruptedError

    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_files_are_written(number, name, tmp_path, monkeypatch):
    filled(tmp_path, 1.0).write()
    real, calls = getattr(os, name), []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            signal.raise_signal(number)
        return real(*args)

    monkeypatch.setattr(os, name, stopped)
    with handled(number), pytest.raises(InterruptedError), filled(tmp_path, 2.0) as report:
        report.write()
    assert names(tmp_path) == FILES and content(tmp_path)["r-more.csv"] == b"z\n-2.0\n" and len(calls) == 5


def test_in_another_thread(tmp_path):
    thread = threading.Thread(target=lambda: filled(tmp_path / "x").write())
    thread.start()
    thread.join()
    assert names(tmp_path / "x") == FILES


def test_an_error_before_write_leaves_nothing(tmp_path):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), filled(tmp_path / "a" / "b"):
            raise error
    assert not list(tmp_path.iterdir())


# ---- folders that cannot be written to


def test_wrong_folders_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for output, said in {"file": "file", "file/a/b": "file", "link": "link", "x" * 300: "File name too long"}.items():
        with pytest.raises(UserError, match=said):
            Report("r", "Title", tmp_path / output)
    os.mkfifo(tmp_path / "r.md")
    with pytest.raises(UserError, match=r"cannot write .*r\.md: it is a FIFO"):
        Report("r", "Title", tmp_path)
    os.unlink(tmp_path / "r.md")
    (tmp_path / "r-curve.svg").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*r-curve\.svg: Is a directory"):
        filled(tmp_path).write()
    assert names(tmp_path) == ["file", "link", "r-curve.svg"]


@contextlib.contextmanager
def not_root():
    """Runs as nobody if the tests run as root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths, because nobody may not enter the folder of another user's tests
    report = filled("new")
    tmp_path.chmod(0o555)
    with not_root():
        for output in (".", "new/deeper"):
            with pytest.raises(UserError, match=r"^cannot write to the output folder \.: Permission denied$"):
                Report("r", "Title", output)
        with pytest.raises(UserError, match=r"^cannot write to the output folder new: Permission denied$"):
            report.write()  # the folder could be written to before
    tmp_path.chmod(0o755)
    assert not list(tmp_path.iterdir())


def test_links_to_a_folder_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").mkdir()
    filled("link").write()
    filled("a/../b").write()
    filled(".").write()
    assert names(tmp_path / "real") == names(tmp_path / "b") == FILES and set(FILES) < set(names(tmp_path))


# ---- names in Markdown


def test_names_look_as_they_are():
    same = ["sew_resnet18", "a-b.c", "ADD-2020", "ünï 数", "a b", "50 %"]
    assert [escaped(name) for name in same] == same
    assert escaped("_x_y_ __a__") == r"\_x_y\_ \_\_a\_\_"
    assert escaped("[a](b) *c* `d` <e> | ~~f~~ $g$ &amp; \\") == (
        r"\[a\](b) \*c\* \`d\` \<e\> \| \~\~f\~\~ \$g\$ \&amp; \\"
    )
    assert printable("a\nb\t\x01\udcff\u2028c") == r"a\nb\t\x01\udcff\u2028c"
    assert escaped(" a \n b ") == r"a \\n b"
    assert [code(text) for text in ("x y", "a`b", "`` c", "a\nb")] == ["`x y`", "`` a`b ``", "``` `` c ```", r"`a\nb`"]


def test_a_table_keeps_its_columns():
    table = markdown_table(("a", "b"), [("x|y", "`p|q`"), (escaped("s|t"), "line\nbreak"), (1, None)])
    assert table.splitlines()[2:] == [r"| x\|y | `p\|q` |", r"| s\|t | line break |", "| 1 | None |"]


def test_text_that_is_not_utf8(tmp_path):
    """Bytes of file names that are not UTF-8 do not stop the report."""
    report = Report("r", "Title", tmp_path)
    report.table("data", {"x": "a name"}, [{"x": "\udcff"}])
    report.say("\udcff")
    report.write("\udcff")
    assert "\n\\udcff\n" in (tmp_path / "r.md").read_text() and "`\\udcff`" in (tmp_path / "r.md").read_text()
    with open(tmp_path / "r-data.csv") as file:
        assert list(csv.DictReader(file)) == [{"x": "\\udcff"}]


def test_small_parts():
    assert Finding("A.", True, "x").line() == "- A. Holds: x" and percent(0.12345) == "12.35 %"
