"""A process that trains the runs of a sweep, one after the other (:func:`command`).

:mod:`sewsnn.experiments.sweep` starts it. Each line on stdin is a run, ``{"name", "config", "log"}`` in JSON; each line
on stdout is its outcome, ``{"name", "outcome", "message"}``. What the training prints goes to the file ``log``. The
process exits when stdin ends. If its parent ends, it saves the run and exits.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

DIVERGED = "diverged.txt"  #: the file in the folder of a run whose loss or gradient became infinite or NaN


_SAVING = 60.0  # seconds that a run has to save itself after the parent has ended


def command() -> list[str]:
    """Returns the command that starts a worker of this process: with this Python and these folders of modules, not
    those of the working directory."""
    code = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from sewsnn.experiments.worker import main; main(int(sys.argv[2]))"
    )
    folders = [os.path.abspath(folder) for folder in sys.path]
    return [sys.executable, "-c", code, json.dumps(folders), str(os.getpid())]


def main(parent: int) -> None:
    """Trains every run that stdin names, as long as the process ``parent`` is this process's parent."""
    answers = os.fdopen(os.dup(1), "w")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for line in sys.stdin:
        if os.getppid() != parent:
            break
        run = json.loads(line)
        log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        outcome, message = _train(run["config"])
        sys.stdout.flush()
        print(json.dumps({"name": run["name"], "outcome": outcome, "message": message}), file=answers, flush=True)
        if outcome == "stopped":
            break


def _train(content: dict) -> tuple[str, str]:
    """Trains a run, or continues it. Returns the outcome and a message."""
    from sewsnn.errors import UserError, one_line
    from sewsnn.files import write_text
    from sewsnn.train.config import from_dict
    from sewsnn.train.loop import Interrupted, train
    from sewsnn.train.nonfinite import NonFinite

    config = from_dict(content)
    try:
        try:
            train(config, "auto")
        except NonFinite as error:  # an outcome, not a failure: a learning rate may be too large for a surrogate
            write_text(Path(config.folder) / DIVERGED, f"{error}\n")
            return "diverged", str(error)
    except Interrupted as stop:
        return "stopped", str(stop)
    except UserError as error:
        return "error", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", one_line(f"{type(error).__name__}: {error}")
    return "done", ""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)  # a run that trains saves and stops
    time.sleep(_SAVING)
    os._exit(1)
