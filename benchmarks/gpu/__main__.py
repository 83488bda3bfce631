"""One command for a GPU machine: tests, sanitizers, timings, in the order of their worth.

    python -m benchmarks.gpu [--budget SECONDS] [--json FILE] [--log FILE] [--library FILE] [--only STAGE ...] [--again]

Each stage is a process with a time limit; its rows and its verdict go to the JSON-lines file as they come, its output
to the log. Called again, it goes on where it stopped: with the stages that have not passed with these sources on this
device, and in a stage that measures with the first case that is missing. --again measures everything anew. --budget: no
stage is begun that could not do its work in the seconds left, and none runs beyond them. --library: a library built
elsewhere; without one it is built here only if none is in its place. --device cpu rehearses all of it without a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, append_rows, csrc_hash, read_rows
from benchmarks.gpu.stages import Stage, available, stages


def device_name(device: str) -> str:
    """Which device the results are of. Asked in a process of its own: this one never holds the GPU."""
    code = f"from benchmarks.common import device_name; print(device_name({device!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no {device} device: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.strip()


def passed(rows: list[dict], name: str) -> set[str]:
    """The stages that have passed with these sources on this device."""
    return {r["stage"] for r in rows if r.get("ok") and r["csrc"] == csrc_hash() and r["device"] == name}


def run(stage: Stage, limit_s: float, arguments: argparse.Namespace) -> dict:
    """Runs one stage; its verdict as a row."""
    command = [str(arguments.json.resolve()) if word == "{json}" else word for word in stage.command]
    command = [word for word in command if word != "--resume" or not arguments.again]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    env.setdefault("OMP_NUM_THREADS", "4")  # several processes of tests share the processor
    if arguments.library:
        env["SEWSNN_LIBRARY"] = str(Path(arguments.library).resolve())
    if stage.name.startswith("sanitize"):
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # each tensor an allocation: no pool hides an overrun
    start = time.monotonic()
    with open(arguments.log, "a", encoding="utf-8") as log:
        log.write(f"\n==== {stage.name}: {' '.join(command)}\n")
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp
        )
        try:
            code = process.wait(timeout=limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with everything it has started
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    with open(arguments.log, encoding="utf-8", errors="replace") as log:
        log.seek(begin)
        lines = [line.strip() for line in log if line.strip()]
    last = lines[-1][:300] if lines else ""
    # pytest is content when every test was skipped, a sanitizer when there was nothing to see; we are not.
    ok = code == 0 and ("pytest" not in command or " passed" in last)
    ok = ok and all(any(wanted in line for line in lines) for wanted in stage.says)
    verdict = {"stage": stage.name, "ok": ok, "seconds": round(time.monotonic() - start, 1)}
    return verdict | {"exit": "time limit" if code is None else code, "last": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds (default: no limit)")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.jsonl")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "gpu.log")
    parser.add_argument("--library", help="a libsewsnn.so built from these sources")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages only")
    parser.add_argument("--again", action="store_true", help="also stages that have passed")
    parser.add_argument("--quick", action="store_true", help="small shapes, few tests")
    parser.add_argument("--list", action="store_true", help="print the stages and end")
    arguments = parser.parse_args()
    chosen = stages(arguments.device, arguments.quick)
    if unknown := set(arguments.only or ()) - {stage.name for stage in chosen}:
        parser.error(f"--only: no stage {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in chosen)}")
    if arguments.library and not Path(arguments.library).is_file():
        parser.error(f"--library: {arguments.library} is not there")
    if arguments.list:
        for stage in chosen:
            print(f"{stage.name:>20}  at most {stage.limit_s:>3} s  {' '.join(stage.command)}")
        return
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    name = device_name(arguments.device)
    done = set() if arguments.again else passed(read_rows(arguments.json), name)
    failed = []
    for stage in chosen:
        if (arguments.only and stage.name not in arguments.only) or stage.name in done:
            continue
        left = arguments.budget - (time.monotonic() - start)
        where = {"device": name, "csrc": csrc_hash(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
        if not available(stage):
            print(f"{stage.name:>20}  left out: {stage.needs} is not on PATH", flush=True)
            continue
        if left < stage.enough_s:
            print(f"{stage.name:>20}  left for another time: {max(left, 0):.0f} s are too few", flush=True)
            continue
        verdict = run(stage, min(stage.limit_s, left), arguments)
        append_rows(arguments.json, [verdict | where])
        print(
            f"{stage.name:>20}  {'ok' if verdict['ok'] else 'FAILED'} in {verdict['seconds']} s: {verdict['last']}",
            flush=True,
        )
        if not verdict["ok"]:
            failed.append(stage.name)
            if stage.name in ("library", "smoke"):
                break  # nothing else would work
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {arguments.log}")


if __name__ == "__main__":
    main()
