"""A file system of a test's own, small enough to be filled in a moment."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NEEDED = "Mounting a file system of a test's own takes root and CAP_SYS_ADMIN."


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs: every byte of it is a test's."""

    path: Path

    @property
    def free_bytes(self) -> int:
        room = os.statvfs(self.path)
        return room.f_frsize * room.f_bavail

    def fill(self, *, but_for: int = 0) -> None:
        """Take all that is free, but for so many bytes, with a file of no use."""
        with self._ballast.open("ab") as file:
            while (more := self.free_bytes - but_for) > 0:
                size = os.fstat(file.fileno()).st_size
                try:
                    os.posix_fallocate(file.fileno(), size, more)
                except OSError as error:
                    # A server on this disk has written in between: less is left than there was.
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self) -> None:
        """What somebody does who is told that the disk is full."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"


@contextmanager
def mounted(megabytes: int) -> Iterator[SmallDisk]:
    """A new file system, unmounted however the block ends."""
    path = Path(tempfile.mkdtemp(prefix="ingestion-tests-disk-"))
    options = f"size={megabytes}m,mode=0755"
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        try:
            yield SmallDisk(path)
        finally:
            # Lazily, since a server that is just ending may still hold a file.
            subprocess.run(["umount", "--lazy", path], check=True)
    finally:
        path.rmdir()


@cache
def can_mount() -> bool:
    """Whether this machine lets a test mount a file system."""
    if os.geteuid() != 0:
        return False
    try:
        with mounted(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
