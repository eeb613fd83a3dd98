"""What tests of faults share: the table, and the fixture that adds to it."""

from __future__ import annotations

import pytest

from ingestion_pipeline_tests.faults import record


def pytest_configure(config: pytest.Config) -> None:
    """Register the table, unless it was named on the command line or by a conftest above."""
    if not config.pluginmanager.has_plugin(record.__name__):
        config.pluginmanager.register(record, record.__name__)
