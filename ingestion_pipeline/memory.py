"""How much memory this process may still take, on this machine and in its container; and what is
said when it has none.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ingestion_pipeline.errors import OutOfMemoryError

CONTAINER = Path("/sys/fs/cgroup")  # where a container finds its own limits


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Turn a `MemoryError` inside into `OutOfMemoryError`, which says how to do with less."""
    try:
        yield
    except MemoryError as error:
        # What the frames of the failed work hold is needed to come to an orderly end.
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(error, remedy) from error


def out_of_memory(error: MemoryError, remedy: str) -> OutOfMemoryError:
    """The error to tell of; `remedy` is a sentence."""
    said = f" ({error})" if str(error) else ""
    return OutOfMemoryError(
        f"This process has no memory left{said}. {remedy} Then run the same command again: "
        "everything committed is kept."
    )


def free_memory_bytes(container: Path = CONTAINER) -> int:
    """Bytes that can be had without swapping: the least of the machine's and the container's.

    What the container holds as file cache counts as free, since the kernel gives it back.
    """
    machine: int = psutil.virtual_memory().available
    limit = _number(container / "memory.max")
    used = _number(container / "memory.current")
    if limit is None or used is None:
        return machine
    return min(machine, max(limit - used + _file_cache(container), 0))


def _number(file: Path) -> int | None:
    """What the file holds; None where it is not there, or says `max`."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _file_cache(container: Path) -> int:
    try:
        lines = (container / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    cache = (line.split()[1] for line in lines if line.startswith("inactive_file "))
    return int(next(cache, "0"))
