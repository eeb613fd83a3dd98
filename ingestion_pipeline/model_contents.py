"""What a folder of model files holds, as one digest.

For a model that nothing else identifies: a folder of the user's own, whose files may be replaced
under the same name. Where models come from, and which are pinned, is `embedding`'s to know.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}
"""Weights, configuration, tokenizers and their vocabularies."""


def contents_digest(folder: Path) -> str | None:
    """16 hexadecimal characters of SHA-256 over the names and contents of the model's files.

    None where there are none. Files are read once a process, and again when size or time change.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    states = [(path, path.stat()) for path in files if path.is_file()]
    if not states:
        return None
    return _digest(
        folder,
        tuple(
            (str(path.relative_to(folder)), state.st_size, state.st_mtime_ns)
            for path, state in states
        ),
    )


@functools.cache
def _digest(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, *_ in files:
        with (folder / name).open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").digest()
        digest.update(name.encode() + b"\0" + contents)
    return digest.hexdigest()[:16]
