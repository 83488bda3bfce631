"""Converts event recordings to the samples that training reads: ``sewsnn data prepare dvs128_gesture | cifar10_dvs``.

The samples of a recording are written completely or not at all, then noted in a journal. The index is written last. A
recording in the journal is not prepared again, unless its original file has changed since or a sample is missing.
"""

import contextlib
import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from sewsnn.data import cifar10_dvs, dvs_gesture
from sewsnn.data.event_store import (
    FORMAT,
    INDEX,
    JOURNAL,
    Index,
    Sample,
    check_kinds,
    read_index,
    to_sample,
    write_index,
)
from sewsnn.errors import DataError, UnreadableError, UserError, plain
from sewsnn.files import read_regular, write_text
from sewsnn.locking import FolderLock
from sewsnn.progress import Bar

_MODULES = {"dvs128_gesture": dvs_gesture, "cifar10_dvs": cifar10_dvs}
_AHEAD = 4  # recordings queued per process


class _Done(NamedTuple):
    """A prepared recording; one line of the journal."""

    recording: str
    stamp: list[int]  # size and modification time of the original files
    samples: list[Sample]
    invalid: int
    others: int
    late: int
    remarks: list[str]


def prepare(name: str, root: Path, output: Path, *, workers: int, size: int, on_corrupt: str) -> str:
    """See :func:`sewsnn.data.preparing.prepare`. ``size`` is not used for events."""
    module = _MODULES[name]
    root, output = Path(root).resolve(), Path(output).resolve()
    if output == root or root in output.parents or output in root.parents:
        raise UserError(f"output: {output} must be a folder outside root, {root}, and must not contain root")
    if not root.is_dir():
        raise UserError(f"root: the folder {root} does not exist")
    planned = module.recordings(root)
    with FolderLock(output, "prepared"):
        index = _same_set(output, name, root)
        journal = _Journal(output, name, root)
        parts = dict(planned)
        done = {e.recording: e for e in journal.entries if _is_there(e, parts.get(e.recording), module, root, output)}
        if index and parts.keys() <= done.keys() and index.samples == [s for r in parts for s in done[r].samples]:
            journal.close()
            return _report(output, index, "is already prepared")
        (output / INDEX).unlink(missing_ok=True)  # it is written again at the end
        _remove_temporary(output)
        left_out = {}
        try:
            _run(module, root, output, planned, done, left_out, journal, workers, on_corrupt)
        except KeyboardInterrupt:
            raise UserError(
                f"stopped after {len(done):,} of {len(planned):,} recordings. Run the same command again to resume"
            ) from None
        finally:
            journal.close()
        return _finish(module, name, root, output, planned, done, left_out)


def _run(module, root, output, planned, done, left_out, journal, workers, on_corrupt) -> None:
    """Prepares the missing recordings and records each in ``done`` and the journal, or in ``left_out``."""
    todo = [(recording, part) for recording, part in planned if recording not in done]
    for recording, part in planned:
        (output / (part or recording.split("/")[0])).mkdir(exist_ok=True)
    before = len(planned) - len(todo)
    with Bar(total=len(planned), initial=before, unit="recording", desc="preparing") as bar:
        for recording, result in _results(module, root, output, todo, min(workers, len(todo))):
            if isinstance(result, DataError):
                # An I/O error always aborts: otherwise a lost disk would give an incomplete set.
                if on_corrupt == "stop" or isinstance(result, UnreadableError):
                    raise result
                left_out[recording] = str(result)
            elif isinstance(result, Exception):
                raise result
            else:
                journal.add(result)
                done[recording] = result
            bar.update()


def _results(module, root: Path, output: Path, todo, workers: int) -> Iterator[tuple[str, _Done | Exception]]:
    """Yields each recording with its result, in the order in which they finish."""
    if workers <= 1:
        for recording, part in todo:
            yield recording, _prepare_one(module.__name__, root, output, recording, part)
        return
    waiting = iter(todo)
    running = {}
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        try:
            while True:
                for recording, part in waiting:
                    future = pool.submit(_prepare_one, module.__name__, root, output, recording, part)
                    running[future] = recording
                    if len(running) >= workers * _AHEAD:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a worker process that prepares recordings ended: it was killed, or memory is too small for {workers} "
                "workers. Run the same command again to resume"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_one(module: str, root: Path, output: Path, recording: str, part: str) -> _Done | Exception:
    """Prepares one recording; runs in a worker process. Returns its entry for the journal, or the error."""
    module = {m.__name__: m for m in _MODULES.values()}[module]
    try:
        stamp = _stamp(module, root, recording)
        samples, found, remarks = module.prepare_recording(root, recording, part, output)
        return _Done(recording, stamp, samples, found.invalid, found.others, found.late, remarks)
    except UserError as error:
        return error


def _start_worker() -> None:
    """Makes a worker process exit soon after its parent was killed; nothing else would end it."""

    def watch():
        while os.getppid() == first:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    first = os.getppid()  # under a fork server this is the server, which ends with the parent
    threading.Thread(target=watch, daemon=True).start()


def _stamp(module, root: Path, recording: str) -> list[int]:
    """Returns the size in bytes and the modification time in nanoseconds of each original file of a recording."""
    stamp = []
    for path in module.sources(root, recording):
        try:
            found = path.stat()
        except OSError as error:
            raise UnreadableError.of(path, error) from None
        stamp += [found.st_size, found.st_mtime_ns]
    return stamp


def _is_there(entry: _Done, part: str | None, module, root: Path, output: Path) -> bool:
    """Returns whether a recording need not be prepared again. ``part`` is its split now; None: it has none."""
    with contextlib.suppress(DataError):
        if part is not None and entry.stamp == _stamp(module, root, entry.recording):
            return all(sample.part == part and (output / sample.file).is_file() for sample in entry.samples)
    return False


class _Journal:
    """The prepared recordings, one line each with a checksum. The first line names the data set and its root. An
    incomplete line is ignored, and its recording is prepared again."""

    def __init__(self, output: Path, name: str, root: Path):
        self.path = output / JOURNAL
        if not self.path.exists():
            write_text(self.path, _line({"format": FORMAT, "name": name, "root": str(root)}))
        text = read_regular(self.path).decode(errors="replace")
        self.entries = [entry for line in text.split("\n")[1:] if (entry := _entry(_content(line)))]
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        if not text.endswith("\n"):
            self.file.write("\n")

    def add(self, entry: _Done) -> None:
        try:
            self.file.write(_line(entry))
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full; add has reported it
            self.file.close()


def _line(content) -> str:
    """Returns a line of the journal: the CRC-32 of the JSON text, then the text."""
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _content(line: str):
    """Returns the content of a line from :func:`_line`, or None if the line was changed."""
    crc, _, text = line.partition(" ")
    if crc != f"{zlib.crc32(text.encode()):08x}":
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _entry(content) -> _Done | None:
    """Converts a JSON entry of the journal; returns None if it is not a valid entry."""
    with contextlib.suppress(TypeError, ValueError):
        check_kinds(content, (str, list, list, int, int, int, list))
        entry = _Done(*content)
        check_kinds(entry.stamp, [int] * len(entry.stamp))
        check_kinds(entry.remarks, [str] * len(entry.remarks))
        return entry._replace(samples=[to_sample(sample) for sample in entry.samples])
    return None


def _same_set(output: Path, name: str, root: Path) -> Index | None:
    """Returns the index of a finished set, or None. Raises UserError if the folder holds anything other than a set with
    this name and root."""
    journal = output / JOURNAL
    if journal.exists():
        found = _content(read_regular(journal).decode(errors="replace").split("\n")[0])
        if not isinstance(found, dict) or found.keys() != {"format", "name", "root"} or found["format"] != FORMAT:
            raise UserError(f"{journal} is damaged; remove {output} or choose another output")
        if (found["name"], found["root"]) != (name, str(root)):
            raise UserError(
                f"output: {output} holds {plain(found['name'])} from {plain(found['root'])}, not {name} from {root}; "
                "choose another folder"
            )
    elif any(not path.name.startswith(".") for path in output.iterdir()):
        raise UserError(f"output: {output} is not empty and holds no prepared data; choose another folder")
    try:
        index = read_index(output)
        return index if index and (index.name, index.root) == (name, str(root)) else None
    except UnreadableError:
        raise
    except DataError:  # the index is damaged and is written again
        return None


def _remove_temporary(output: Path) -> None:
    """Removes half-written files of a killed process."""
    for pattern in ("*/.*.npy.*", f".{INDEX}.*", f".{JOURNAL}.*"):
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)


def _finish(module, name, root, output, planned, done, left_out) -> str:
    """Writes the index and returns the report."""
    entries = [done[recording] for recording, _ in planned if recording in done]
    missing = [recording for recording, _ in planned if recording not in done and recording not in left_out]
    if missing:
        raise UserError(
            f"{len(missing)} recordings were not prepared, among them {missing[0]}. Run the same command again"
        )
    samples = [sample for entry in entries for sample in entry.samples]
    _check_parts(module, planned, samples, left_out)
    remarks = [remark for entry in entries for remark in entry.remarks] + module.count_remarks(samples)
    for kind, text in (
        ("invalid", "events marked as invalid were left out"),
        ("others", "events of other types were left out"),
        ("late", "events were out of order and were sorted by time"),
    ):
        count, where = sum(getattr(e, kind) for e in entries), sum(getattr(e, kind) > 0 for e in entries)
        if count:
            remarks.append(f"{count:,} {text}, in {where:,} recordings")
    index = Index(name, str(root), samples, left_out, remarks)
    write_index(output, index)
    return _report(output, index, "is prepared")


def _check_parts(module, planned: list[tuple[str, str]], samples: list[Sample], left_out: dict[str, str]) -> None:
    """Raises DataError if the set, a split or a class has no readable recording left: training could not use it."""
    there = {sample.recording for sample in samples}
    for what, recordings in {"the data set": {recording for recording, _ in planned}, **module.parts(planned)}.items():
        if recordings and not recordings & there:
            why = next((f": {reason}" for recording, reason in left_out.items() if recording in recordings), "")
            raise DataError(f"no recording of {what} could be read, so the set is not usable{why}")


def _report(output: Path, index: Index, what: str) -> str:
    """Returns the report to print."""
    events = sum(sample.events for sample in index.samples)
    lines = [f"{index.name} {what} in {output}: {len(index.samples):,} samples, {events:,} events"]
    lines += [f"note: {remark}" for remark in index.remarks]
    lines += [f"left out: {why}" for why in index.left_out.values()]
    return "\n".join(lines)
