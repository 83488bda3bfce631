"""What the benchmarks share."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def csrc_hash() -> str:
    """Twelve hexadecimal digits that change with any file of csrc."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
