"""The sidecar that a run of an engine's own tests has, on the disk of the build."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from conftest import TARGET, Sidecar

(TARGET / "tmp").mkdir(parents=True, exist_ok=True)
_home = Path(tempfile.mkdtemp(prefix="s", dir=TARGET / "tmp"))
SIDECAR = Sidecar(_home, "")


@atexit.register
def _end() -> None:
    SIDECAR.kill()
    shutil.rmtree(_home)
