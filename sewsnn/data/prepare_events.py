"""Event recordings to samples that training reads: ``sewsnn data prepare dvs128_gesture | cifar10_dvs``.

Each recording's samples are written whole or not at all, then noted in a journal; the index is written last. What the
journal notes is not done again, unless the original file has changed since, or a sample is gone.
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
_AHEAD = 4  # recordings per process that wait for it


class _Done(NamedTuple):
    """A recording that was prepared; one line of the journal."""

    recording: str
    stamp: list[int]  # size and time of change of its files
    samples: list[Sample]
    invalid: int
    others: int
    late: int
    remarks: list[str]


def prepare(name: str, root: Path, output: Path, *, workers: int, size: int, on_corrupt: str) -> str:
    """See :func:`sewsnn.data.preparing.prepare`; ``size`` does not concern events."""
    module = _MODULES[name]
    root, output = Path(root).resolve(), Path(output).resolve()
    if output == root or root in output.parents or output in root.parents:
        raise UserError(f"output: {output} must be a folder outside of root, {root}, and not hold it")
    if not root.is_dir():
        raise UserError(f"root: there is no folder {root}")
    planned = module.recordings(root)
    with FolderLock(output, "prepared"):
        index = _same_set(output, name, root)
        journal = _Journal(output, name, root)
        parts = dict(planned)
        done = {e.recording: e for e in journal.entries if _is_there(e, parts.get(e.recording), module, root, output)}
        if index and parts.keys() <= done.keys() and index.samples == [s for r in parts for s in done[r].samples]:
            journal.close()
            return _report(output, index, "was prepared before")
        (output / INDEX).unlink(missing_ok=True)  # until all is there again
        _remove_temporary(output)
        left_out = {}
        try:
            _run(module, root, output, planned, done, left_out, journal, workers, on_corrupt)
        except KeyboardInterrupt:
            raise UserError(
                f"stopped after {len(done):,} of {len(planned):,} recordings; call again, it goes on"
            ) from None
        finally:
            journal.close()
        return _finish(module, name, root, output, planned, done, left_out)


def _run(module, root, output, planned, done, left_out, journal, workers, on_corrupt) -> None:
    """Prepares what is not done, and notes it in ``done`` and the journal, or in ``left_out``."""
    todo = [(recording, part) for recording, part in planned if recording not in done]
    for recording, part in planned:
        (output / (part or recording.split("/")[0])).mkdir(exist_ok=True)
    before = len(planned) - len(todo)
    with Bar(total=len(planned), initial=before, unit="recording", desc="preparing") as bar:
        for recording, result in _results(module, root, output, todo, min(workers, len(todo))):
            if isinstance(result, DataError):
                # A disk that is gone must not make a set of what was read before.
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
    """In the order they are finished."""
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
                f"a process that prepares recordings ended: too little memory for {workers} workers, or it was killed. "
                "Call again, it goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_one(module: str, root: Path, output: Path, recording: str, part: str) -> _Done | Exception:
    module = {m.__name__: m for m in _MODULES.values()}[module]
    try:
        stamp = _stamp(module, root, recording)
        samples, found, remarks = module.prepare_recording(root, recording, part, output)
        return _Done(recording, stamp, samples, found.invalid, found.others, found.late, remarks)
    except UserError as error:
        return error


def _start_worker() -> None:
    """A worker ends soon after the process that started it was killed: nothing else would end it."""

    def watch():
        while os.getppid() == first:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    first = os.getppid()  # with a fork server, that one, which ends with the parent
    threading.Thread(target=watch, daemon=True).start()


def _stamp(module, root: Path, recording: str) -> list[int]:
    stamp = []
    for path in module.sources(root, recording):
        try:
            found = path.stat()
        except OSError as error:
            raise UnreadableError.of(path, error) from None
        stamp += [found.st_size, found.st_mtime_ns]
    return stamp


def _is_there(entry: _Done, part: str | None, module, root: Path, output: Path) -> bool:
    """Whether a recording need not be prepared again. ``part``: what it is for now, None: nothing."""
    with contextlib.suppress(DataError):
        if part is not None and entry.stamp == _stamp(module, root, entry.recording):
            return all(sample.part == part and (output / sample.file).is_file() for sample in entry.samples)
    return False


class _Journal:
    """The recordings that are prepared, a line each with its checksum; the first line says of what. A line that is not
    whole counts for nothing: its recording is prepared again."""

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
        with contextlib.suppress(OSError):  # of a full disk, which add has named
            self.file.close()


def _line(content) -> str:
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _content(line: str):
    """What :func:`_line` made a line of; None if it is not as it was made."""
    crc, _, text = line.partition(" ")
    if crc != f"{zlib.crc32(text.encode()):08x}":
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _entry(content) -> _Done | None:
    """An entry of the journal as JSON has it; None if it is none."""
    with contextlib.suppress(TypeError, ValueError):
        check_kinds(content, (str, list, list, int, int, int, list))
        entry = _Done(*content)
        check_kinds(entry.stamp, [int] * len(entry.stamp))
        check_kinds(entry.remarks, [str] * len(entry.remarks))
        return entry._replace(samples=[to_sample(sample) for sample in entry.samples])
    return None


def _same_set(output: Path, name: str, root: Path) -> Index | None:
    """The index of a finished set; refuses a folder with anything else in it than a set of this name and root."""
    journal = output / JOURNAL
    if journal.exists():
        found = _content(read_regular(journal).decode(errors="replace").split("\n")[0])
        if not isinstance(found, dict) or found.keys() != {"format", "name", "root"} or found["format"] != FORMAT:
            raise UserError(f"{journal} is damaged; remove {output}, or choose another output")
        if (found["name"], found["root"]) != (name, str(root)):
            raise UserError(
                f"output: {output} holds {plain(found['name'])} from {plain(found['root'])}, not {name} from {root}; "
                "choose another"
            )
    elif any(not path.name.startswith(".") for path in output.iterdir()):
        raise UserError(f"output: {output} is not empty, and nothing was prepared in it; choose another folder")
    try:
        index = read_index(output)
        return index if index and (index.name, index.root) == (name, str(root)) else None
    except UnreadableError:
        raise
    except DataError:  # it is made again
        return None


def _remove_temporary(output: Path) -> None:
    """What a killed process left half-written."""
    for pattern in ("*/.*.npy.*", f".{INDEX}.*", f".{JOURNAL}.*"):
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)


def _finish(module, name, root, output, planned, done, left_out) -> str:
    entries = [done[recording] for recording, _ in planned if recording in done]
    missing = [recording for recording, _ in planned if recording not in done and recording not in left_out]
    if missing:
        raise UserError(f"{len(missing)} recordings were not prepared, of them {missing[0]}; call again")
    samples = [sample for entry in entries for sample in entry.samples]
    _check_parts(module, planned, samples, left_out)
    remarks = [remark for entry in entries for remark in entry.remarks] + module.count_remarks(samples)
    for kind, text in (
        ("invalid", "events marked as invalid were left out"),
        ("others", "events of other kinds were left out"),
        ("late", "events were moved to their place in time"),
    ):
        count, where = sum(getattr(e, kind) for e in entries), sum(getattr(e, kind) > 0 for e in entries)
        if count:
            remarks.append(f"{count:,} {text}, in {where:,} recordings")
    index = Index(name, str(root), samples, left_out, remarks)
    write_index(output, index)
    return _report(output, index, "is prepared")


def _check_parts(module, planned: list[tuple[str, str]], samples: list[Sample], left_out: dict[str, str]) -> None:
    """Raises DataError if nothing is left of the set, or of a part of it: no training could use what is there."""
    there = {sample.recording for sample in samples}
    for what, recordings in {"the data set": {recording for recording, _ in planned}, **module.parts(planned)}.items():
        if recordings and not recordings & there:
            why = next((f": {reason}" for recording, reason in left_out.items() if recording in recordings), "")
            raise DataError(f"no recording of {what} could be read, nothing is prepared{why}")


def _report(output: Path, index: Index, what: str) -> str:
    events = sum(sample.events for sample in index.samples)
    lines = [f"{index.name} {what} in {output}: {len(index.samples):,} samples, {events:,} events"]
    lines += [f"note: {remark}" for remark in index.remarks]
    lines += [f"left out: {why}" for why in index.left_out.values()]
    return "\n".join(lines)
