"""The pipeline as Dagster sees it: assets, checks, jobs. The only part that knows Dagster."""
