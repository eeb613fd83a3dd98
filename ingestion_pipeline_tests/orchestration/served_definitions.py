"""The pipeline's definitions with known models, as a code location of the web server."""

from ingestion_pipeline.orchestration.definitions import definitions
from ingestion_pipeline_tests.orchestration.known_models import slow_models

defs = definitions(slow_models())
