"""Every error that the project raises on purpose has an exit code on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingestion_pipeline import errors
from ingestion_pipeline.cli.exit_codes import ExitCode, exit_code


def _leaves(kind: type[errors.IngestionError]) -> Iterator[type[errors.IngestionError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for child in below:
        yield from _leaves(child)


@pytest.mark.parametrize("kind", sorted(set(_leaves(errors.IngestionError)), key=str))
def test_no_error_of_ours_is_called_unexpected(kind: type[errors.IngestionError]) -> None:
    assert exit_code(kind("x")) is not ExitCode.UNEXPECTED


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.SettingsError, 2),
        (errors.MappingError, 2),
        (errors.InputError, 2),
        (errors.DatabaseUnavailableError, 3),
        (errors.DatabaseRightsError, 3),
        (errors.PreflightError, 4),
        (errors.RangeFailedError, 6),
        (errors.DiskFullError, 7),
        (errors.WeightsError, 7),
        (errors.InterruptedRunError, 130),
        (errors.TerminatedRunError, 143),
    ],
)
def test_the_kind_of_an_error_decides_the_code(
    kind: type[errors.IngestionError], code: int
) -> None:
    assert exit_code(kind("x")) == code
