"""Free memory, of the machine and of a container; and none at all."""

from __future__ import annotations

import weakref
from pathlib import Path

import psutil
import pytest

from ingestion_pipeline.errors import OutOfMemoryError
from ingestion_pipeline.memory import free_memory_bytes, memory_errors


def test_without_a_container_the_machine_counts(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available

    assert free_memory_bytes(tmp_path) == pytest.approx(free, rel=0.2)


def test_a_container_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")

    assert free_memory_bytes(tmp_path) > 1_000_000


def test_a_container_with_a_limit_leaves_what_it_has_not_used_and_its_file_cache(
    tmp_path: Path,
) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert free_memory_bytes(tmp_path) == 300

    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert free_memory_bytes(tmp_path) == 450


def test_a_container_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("1010\n")

    assert free_memory_bytes(tmp_path) == 0


class _Page:
    """Something large that a failed piece of work still holds."""


def test_no_memory_is_told_with_what_to_do_and_what_the_work_held_is_free_again() -> None:
    held: list[weakref.ref[_Page]] = []

    def work() -> None:
        page = _Page()
        held.append(weakref.ref(page))
        bytes(1 << 62)  # a real allocation, which cannot succeed

    with (
        pytest.raises(OutOfMemoryError, match=r"no memory left.*Read less\.") as told,
        memory_errors("Read less."),
    ):
        work()
    assert "same command" in str(told.value)
    assert isinstance(told.value.__cause__, MemoryError)
    assert held[0]() is None
