"""The main job with known models, as a process that a test can kill."""

from ingestion_pipeline.orchestration.in_process import Nobody, run_ingest
from ingestion_pipeline.settings import load_settings
from ingestion_pipeline_tests.orchestration.known_models import slow_models

if __name__ == "__main__":
    run_ingest(load_settings(), Nobody(), models=slow_models())
