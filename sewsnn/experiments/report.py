"""The report of an analysis: text, figures and tables that are written together (:class:`Report`)."""

import contextlib
import csv
import datetime
import io
import os
import platform
import re
import secrets
import shutil
import signal
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch

import sewsnn
from sewsnn.errors import UserError
from sewsnn.experiments.drawing import rendered
from sewsnn.files import check_replaceable, exists, make_folder
from sewsnn.train.signals import Signals


class Finding(NamedTuple):
    """A statement of the paper, and what this analysis found.

    Attributes:
        claim: the statement.
        holds: True or False; None: these data cannot decide it.
        evidence: the numbers that show it, and if it does not hold, the reason if one is known.
    """

    claim: str
    holds: bool | None
    evidence: str

    def line(self) -> str:
        """The finding as an item of a Markdown list."""
        answer = {True: "Holds", False: "**Does not hold**", None: "Undecided"}[self.holds]
        return f"- {self.claim} {answer}: {self.evidence}"


class Report:
    """Collects the text, figures and tables of an analysis, and writes all of them or none.

    Nothing is written before :meth:`write`, so that a command that is killed while it measures leaves no empty folder.
    If an error ends the ``with`` block, a folder that :meth:`write` created is removed again if it is empty.

    Args:
        name: the analysis. The files are ``<name>.md``, ``<name>-<figure>.png``, ``.svg`` and ``<name>-<table>.csv``.
        title: the heading of the report.
        folder: where to write.
        about: lines that say what was analysed: network, data, weights.

    Attributes:
        findings: the statements of the paper that were tested.
        undecided: if this is not empty, no statement can be decided, for this reason.

    Raises:
        UserError: the folder cannot be created or written to.
    """

    def __init__(self, name: str, title: str, folder: Path, about: Sequence[str] = ()):
        self.name, self.title, self.folder, self.about = name, title, Path(folder), list(about)
        self.findings: list[Finding] = []
        self.undecided = ""
        self._parts: list[str] = []
        self._columns: list[tuple[str, dict[str, str]]] = []
        self._files: dict[str, bytes] = {}
        self._created: list[Path] = []
        missing = self._missing()
        make_folder(missing[-1].parent if missing else self.folder)  # it exists; this tests that it can be written to
        check_replaceable(self.folder / f"{name}.md")

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *error) -> None:
        if error[0] is not None:
            for folder in self._created:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # fails if it holds anything

    def _missing(self) -> list[Path]:
        """Returns the folders that :meth:`write` must create, the innermost first."""
        return list(takewhile(lambda folder: not exists(folder), (self.folder, *self.folder.parents)))

    def say(self, text: str) -> None:
        """Adds a paragraph of Markdown."""
        self._parts.append(text)

    def figure(self, name: str, figure, caption: str) -> None:
        """Adds a figure, as PNG and SVG. Call it inside the ``drawing`` context.

        Args:
            name: a short name for the files.
            figure: the matplotlib figure.
            caption: one or more sentences: what is shown, and in which units.
        """
        for form in ("png", "svg"):
            self._files[f"{self.name}-{name}.{form}"] = rendered(figure, form)
        alt = caption.partition(". ")[0].replace("[", "(").replace("]", ")")
        self._parts.append(f"![{alt}]({self.name}-{name}.png)\n\n*{caption}*")

    def table(self, name: str, columns: dict[str, str], rows: Sequence[dict]) -> None:
        """Adds the data behind a figure as a CSV file.

        Args:
            name: a short name for the file.
            columns: column name -> meaning and unit; the report lists them.
            rows: one dictionary per line; a missing key or None gives an empty field.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._files[f"{self.name}-{name}.csv"] = text.getvalue().encode(errors="backslashreplace")
        self._columns.append((f"{self.name}-{name}.csv", columns))

    def show(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table to the text."""
        self._parts.append(markdown_table(head, rows))

    def find(self, claim: str, holds: bool | None, evidence: str) -> None:
        """Adds a finding; see :class:`Finding`."""
        if self.undecided:
            holds, evidence = None, f"{evidence} {self.undecided}"
        self.findings.append(Finding(claim, holds, evidence))

    def text(self, command: str = "") -> str:
        """Returns the report as Markdown."""
        about = [*self.about, machine()]
        if command:
            about.insert(0, f"command: {code(command)}")
        parts = [f"# {self.title}", "\n".join(f"- {line}" for line in about)]
        if self.findings:
            parts += ["## What is seen", "\n".join(finding.line() for finding in self.findings)]
        parts += ["## Figures and numbers", *self._parts]
        if self._columns:
            parts.append("## Columns of the data files")
        for file, columns in self._columns:
            lines = [f"- `{name}`: {meaning}" for name, meaning in columns.items()]
            parts.append("\n".join([f"[{file}]({file}):\n", *lines]))
        return "\n\n".join(parts) + "\n"

    def write(self, command: str = "") -> Path:
        """Writes all files. On an error, for example a full disk, the files of an earlier call stay as they were. A
        SIGINT or SIGTERM takes effect when all files are written.

        Args:
            command: the command line, for the report. Default: not named.

        Returns:
            The path of the Markdown file.

        Raises:
            UserError: a file cannot be written; the message names it and the cause.
        """
        files = self._files | {f"{self.name}.md": self.text(command).encode(errors="backslashreplace")}
        for name in files:
            check_replaceable(self.folder / name)
        with Signals() as signals:
            self._created = self._missing()
            make_folder(self.folder)
            self._write(files)
        if signals.received:
            signal.raise_signal(signals.received)
        return self.folder / f"{self.name}.md"

    def _write(self, files: dict[str, bytes]) -> None:
        temporary = self.folder / f".{self.name}.{secrets.token_hex(4)}"
        path, old = temporary, temporary / "old"
        try:
            temporary.mkdir()
            old.mkdir()
            for name, data in files.items():
                path = self.folder / name
                with open(temporary / name, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if os.path.lexists(path):
                    _keep(path, old / name)
            replaced = []
            try:
                for name in files:  # needs no space on the disk
                    path = self.folder / name
                    os.replace(temporary / name, path)
                    replaced.append(name)
            except OSError:
                _put_back(replaced, old, self.folder)
                raise
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _keep(path: Path, copy: Path) -> None:
    """Gives a file a second name, or makes a copy where the file system has no hard links."""
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, copy, follow_symlinks=False)


def _put_back(names: Iterable[str], old: Path, folder: Path) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            if os.path.lexists(old / name):
                os.replace(old / name, folder / name)
            else:
                os.unlink(folder / name)


def printable(text: str) -> str:
    """Returns text in one line: control characters, and bytes that are not UTF-8, as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, for a name in a sentence or a table."""
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(printable(text).split()))


def code(text: str) -> str:
    """Returns text as Markdown code, in more backticks than it has itself."""
    text = printable(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is left-aligned, all others are right-aligned.

    Args:
        head: the names of the columns.
        rows: the cells in Markdown; a ``|`` in them does not end a cell.
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).splitlines()))


def machine() -> str:
    """Returns a line that names the machine, the versions and the date, for figures with times or results."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    today = datetime.date.today().isoformat()
    return f"machine: {device}; torch {torch.__version__}, sewsnn {sewsnn.__version__}, {today}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def percent(value: float) -> str:
    """Formats a share in [0, 1] as ``12.34 %``."""
    return f"{100 * value:.2f} %"
