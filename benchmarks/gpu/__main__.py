"""Runs all tests, sanitizers and timings for a GPU, the most important first.

    python -m benchmarks.gpu [--budget SECONDS] [--json FILE] [--log FILE] [--library FILE] [--only STAGE ...] [--again]

Each stage is a process with a time limit. Its rows and its verdict go to the JSON-lines file as they come, and its
output goes to the log. At the end the command prints the share of a copy's bandwidth of each kernel, predicted and
measured. If you call the command again, it continues: it runs the stages that have not passed with these sources on
this device, and a stage that measures begins with the first missing case.

- --again measures everything again.
- --budget: no stage starts that could not do its work in the remaining seconds, and none runs beyond them.
- --library: a library that was built elsewhere. Without it, the first stage builds a library only if there is none.
- --device cpu rehearses all stages without a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, append_rows, csrc_hash, read_rows
from benchmarks.gpu.predicted import comparison
from benchmarks.gpu.stages import Stage, available, stages


def device_name(device: str) -> str:
    """Returns the name of the device, asked in a separate process: this process never uses the GPU."""
    code = f"from benchmarks.common import device_name; print(device_name({device!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cannot use the device {device}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.strip()


def passed(rows: list[dict], name: str) -> set[str]:
    """Returns the stages that have passed with these sources on this device."""
    return {r["stage"] for r in rows if r.get("ok") and r["csrc"] == csrc_hash() and r["device"] == name}


def run(stage: Stage, limit_s: float, arguments: argparse.Namespace) -> dict:
    """Runs one stage. Returns its verdict as a row."""
    command = [str(arguments.json.resolve()) if word == "{json}" else word for word in stage.command]
    command = [word for word in command if word != "--resume" or not arguments.again]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    env.setdefault("OMP_NUM_THREADS", "4")  # several test processes share the processor
    if arguments.library:
        env["SEWSNN_LIBRARY"] = str(Path(arguments.library).resolve())
    if stage.name.startswith("sanitize"):
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # allocate each tensor separately, so that no pool hides an overrun
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
            os.killpg(process.pid, signal.SIGKILL)  # with all its child processes
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    with open(arguments.log, encoding="utf-8", errors="replace") as log:
        log.seek(begin)
        lines = [line.strip() for line in log if line.strip()]
    last = lines[-1][:300] if lines else ""
    # pytest also succeeds if all tests are skipped, and a sanitizer if nothing ran. Here both count as failures.
    ok = code == 0 and ("pytest" not in command or " passed" in last)
    ok = ok and all(any(wanted in line for line in lines) for wanted in stage.says)
    verdict = {"stage": stage.name, "ok": ok, "seconds": round(time.monotonic() - start, 1)}
    return verdict | {"exit": "time limit" if code is None else code, "last": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=float("inf"), help="total seconds (default: no limit)")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.jsonl", help="file for rows and verdicts")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "gpu.log", help="file for the output of the stages")
    parser.add_argument("--library", help="libsewsnn.so that was built from these sources")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run only these stages")
    parser.add_argument("--again", action="store_true", help="also run stages that have passed")
    parser.add_argument("--quick", action="store_true", help="small shapes, few tests")
    parser.add_argument("--list", action="store_true", help="print the stages and exit")
    arguments = parser.parse_args()
    chosen = stages(arguments.device, arguments.quick)
    if unknown := set(arguments.only or ()) - {stage.name for stage in chosen}:
        parser.error(f"--only: unknown stage {', '.join(sorted(unknown))}; known: {', '.join(s.name for s in chosen)}")
    if arguments.library and not Path(arguments.library).is_file():
        parser.error(f"--library: {arguments.library} does not exist")
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
            print(f"{stage.name:>20}  not started: the remaining {max(left, 0):.0f} s are not enough", flush=True)
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
                break  # the other stages would fail as well
    if table := comparison(read_rows(arguments.json), name, csrc_hash()):
        print(f"\nShare of a copy's bandwidth, predicted from the machine code and measured here:\n{table}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {arguments.log}")


if __name__ == "__main__":
    main()
