"""Which file system a path is on, what a full disk's error says, and what is taken for one.

Disks that are really full are in the tests of faults.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import psycopg.errors
import pytest
from sqlalchemy.exc import OperationalError

from ingestion_pipeline.disk import (
    SMALLEST_ROOM,
    FileSystem,
    Place,
    disk_full_beside,
    disk_full_error,
    file_system_of,
    full_disk_told,
    readable,
)
from ingestion_pipeline.errors import DatabaseUnavailableError, DiskFullError
from ingestion_pipeline.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    return load_settings(environ={"INGESTION_HOME": str(home), "XDG_CACHE_HOME": str(cache)})


def test_a_path_that_is_not_there_yet_is_on_the_file_system_that_it_would_be_made_on(
    tmp_path: Path,
) -> None:
    there, not_yet = file_system_of(tmp_path), file_system_of(tmp_path / "a" / "b")
    assert there is not None
    assert not_yet is not None
    assert there.mount_point == not_yet.mount_point
    assert os.path.ismount(there.mount_point)
    assert 0 < there.free_bytes < there.size_bytes


def test_two_mounts_are_two_file_systems() -> None:
    processes, devices = file_system_of(Path("/proc/self")), file_system_of(Path("/dev"))
    assert processes is not None
    assert devices is not None
    assert processes.mount_point == Path("/proc")
    assert devices.mount_point != processes.mount_point


def test_a_disk_is_full_without_room_for_a_file_of_the_log_or_for_any_file() -> None:
    roomy = FileSystem(Path("/mnt"), 1 << 41, SMALLEST_ROOM, has_free_files=True)
    assert not roomy.is_full
    assert replace(roomy, free_bytes=SMALLEST_ROOM - 1).is_full
    assert replace(roomy, free_bytes=1 << 40, has_free_files=False).is_full


def test_the_error_names_the_file_system_what_lies_there_and_what_can_be_cleared(
    tmp_path: Path,
) -> None:
    (tmp_path / "models").mkdir()
    system = file_system_of(tmp_path)
    assert system is not None
    error = disk_full_error(
        "The database has no disk space left.",
        [tmp_path],
        [
            Place("the database", tmp_path),
            Place("the model cache", tmp_path / "models", "the models are fetched again"),
            Place("temporary files", tmp_path / "none", "all of them"),
            Place("the kernel's", Path("/proc")),
        ],
        clearable=["the index i, left unfinished"],
        instead="buy a larger one",
    )
    lines = str(error).splitlines()
    assert lines[0] == "The database has no disk space left."
    assert lines[1].startswith(f"The file system {system.mount_point} (")
    models = tmp_path / "models"
    assert lines[2] == f"On it: the database ({tmp_path}), the model cache ({models})."
    assert lines[3:-1] == [
        "What can be cleared:",
        f"  other files on {system.mount_point}",
        f"  the model cache in {models}: the models are fetched again",
        "  the index i, left unfinished",
        "Or else: buy a larger one.",
    ]
    assert "run the same command again" in lines[-1]


def test_without_a_place_the_error_says_what_is_known() -> None:
    lines = str(disk_full_error("The server has no disk space left.", [], [])).splitlines()
    assert lines[:3] == [
        "The server has no disk space left.",
        "What can be cleared:",
        "  other files on that disk",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_cannot_be_written_is_a_full_disk_however_it_was_wrapped(
    settings: Settings, number: int
) -> None:
    file = str(settings.home / "workspace.yaml")
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = OSError(number, os.strerror(number), file)
    with (
        pytest.raises(DiskFullError, match="could not be written") as full,
        full_disk_told(settings),
    ):
        raise wrapped
    assert file in str(full.value)
    assert "The file system" in str(full.value)


def test_a_full_storage_of_dagsters_is_told_by_the_servers_words_alone(settings: Settings) -> None:
    driver = psycopg.errors.DiskFull("could not extend file: No space left on device")
    error = OperationalError("INSERT INTO event_logs VALUES ('a secret')", {}, driver)
    full = disk_full_beside(error, settings)
    assert full is not None
    assert "Dagster's storage has no disk space left: could not extend file" in str(full)
    assert "secret" not in str(full)


def test_our_own_error_behind_another_is_taken_over_as_it_is(settings: Settings) -> None:
    ours = DiskFullError("The disk of the shop's server is full.")
    storage = OSError(errno.ENOSPC, "and so is that of the storage")
    storage.__cause__ = ours
    with pytest.raises(DiskFullError) as told, full_disk_told(settings):
        raise storage
    assert str(told.value) == str(ours)
    with pytest.raises(DiskFullError) as same, full_disk_told(settings):
        raise ours
    assert same.value is ours


def test_an_error_that_has_to_do_with_no_disk_passes(settings: Settings) -> None:
    for error in (
        ValueError("no"),
        OSError(errno.EACCES, "permission denied"),
        DatabaseUnavailableError("The database cannot be reached."),
    ):
        assert disk_full_beside(error, settings) is None
        with pytest.raises(type(error)) as passed, full_disk_told(settings):
            raise error
        assert passed.value is error


def test_an_old_line_of_a_log_is_not_taken_for_what_is_wrong_today(settings: Settings) -> None:
    today = "The embedded database is not available: pg_ctl said: could not start server."
    log = "\nIts log ends:\n  could not write: No space left on device"
    assert disk_full_beside(DatabaseUnavailableError(today + log), settings) is None
    initdb = "The embedded database is not available: initdb said: No space left on device."
    assert disk_full_beside(DatabaseUnavailableError(initdb), settings) is not None


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (16 << 20, "17 MB"), (5e9, "5.0 GB")]
)
def test_bytes_are_told_in_units_that_disks_are_sold_by(count: int, words: str) -> None:
    assert readable(count) == words
