"""The command `ingest` with known models, as a process that a test can send signals to."""

from unittest import mock

from ingestion_pipeline.cli import app
from ingestion_pipeline.orchestration import in_process
from ingestion_pipeline_tests.orchestration.known_models import slow_models

if __name__ == "__main__":
    with mock.patch.object(in_process, "ConfiguredModels", slow_models):
        app.main()
