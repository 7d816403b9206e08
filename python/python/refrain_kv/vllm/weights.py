"""What stands for a model's weights in its namespace: equal text, equal weights."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


class UnknownField(ValueError):
    """A field of the namespace that cannot be known."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"Refrain's namespace field `{field}` cannot be known: {why}")
        self.field = field


def weights_of(model_config: Any, load_config: Any) -> str:
    """The commit of a model from a hub, or a digest of the files in a local folder."""
    remedy = "say what stands for them in kv_connector_extra_config.weights"
    load_format = str(getattr(load_config, "load_format", "auto"))
    if load_format.rpartition(".")[2] == "dummy":
        raise UnknownField("weights", f"load_format is dummy; {remedy}")
    model = Path(model_config.model)
    if model.is_file():
        return "files " + _digest([model])
    if model.is_dir():
        files = sorted(it for it in model.rglob("*") if it.suffix in _SUFFIXES)
        if not files:
            raise UnknownField("weights", f"{model} has no files of weights; {remedy}")
        return "files " + _digest(files, model)
    commit = getattr(model_config.hf_config, "_commit_hash", None)
    if not commit:
        raise UnknownField("weights", f"{model_config.model!r} has no commit; {remedy}")
    return f"commit {commit}"


def fingerprint(folder: str) -> str | None:
    """Of an adapter's files, by name, size and time, so that it costs no reading. None where they
    are not in a local folder."""
    root = Path(folder)
    if not root.is_dir():
        return None
    files = sorted(it for it in root.rglob("*") if it.is_file())
    return repr([(str(it.relative_to(root)), *_version(it)) for it in files])


def _digest(files: list[Path], root: Path | None = None) -> str:
    """Of names and bytes. Files that have not changed since they were last read are not read."""
    known = _Known()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(known.digest, files))
    known.keep()
    names = [str(it.relative_to(root)) if root else "" for it in files]
    whole = json.dumps(list(zip(names, digests, strict=True)))
    return hashlib.sha256(whole.encode()).hexdigest()


def _version(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class _Known:
    """Digests of files read before, in the user's cache folder."""

    def __init__(self) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(cache) / "refrain" / "weights.json"
        self._new: dict[str, str] = {}
        try:
            self._old = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._old = {}

    def digest(self, file: Path) -> str:
        name = repr((str(file.resolve()), *_version(file)))
        digest = self._old.get(name)
        if not isinstance(digest, str):
            with open(file, "rb") as bytes_of:
                digest = hashlib.file_digest(bytes_of, "sha256").hexdigest()
            self._new[name] = digest
        return digest

    def keep(self) -> None:
        if not self._new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps({**self._old, **self._new}))
            draft.replace(self._path)
        except OSError:
            # It is read again next time.
            pass
