"""Builds the pretended CUDA device, and says why it cannot be built."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "native"))
import host_build  # noqa: E402

ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "device"


def why_not() -> str | None:
    """Returns the reason why the device cannot be pretended beside this torch; None if it can."""
    import torch

    if torch.version.cuda or torch.version.hip:
        return f"this torch {torch.__version__} has a GPU backend of its own"
    if not sys.platform.startswith("linux"):
        return "the device needs Linux"
    return None


def build(folder: Path = BUILD, csrc: Path = ROOT / "csrc") -> Path:
    """Compiles what has changed and returns the folder.

    Raises:
        RuntimeError: the compilation failed. The message ends with what the compiler said.
    """
    sys.path.insert(0, str(ROOT / "cmake"))
    try:
        from csrc_hash import csrc_hash
    finally:
        sys.path.pop(0)
    # The tools of this environment are here, even if it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    torch = Path(find_spec("torch").origin).parent
    configure = ["cmake", "-S", HERE, "-B", folder, "-GNinja", f"-DTORCH={torch}", f"-DCSRC={csrc}"]
    configure += [f"-DKERNELS={host_build.archive(csrc)}"]
    configure += [f"-DCSRC_HASH={csrc_hash() if csrc == ROOT / 'csrc' else 'changed'}"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for command in (configure, ["cmake", "--build", folder, "--parallel", os.environ.get("MAX_JOBS", "2")]):
            command = [str(part) for part in command]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
    return folder


if __name__ == "__main__":
    print(build(*map(Path, sys.argv[1:])))
