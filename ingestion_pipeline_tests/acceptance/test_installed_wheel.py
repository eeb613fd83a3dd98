"""A wheel, built and installed apart from the checkout, works as the checkout does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from ingestion_pipeline.database import queries
from ingestion_pipeline.sample_catalogue.shop import sample_products

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("ingestion_pipeline", "sql", "setup.py", "pyproject.toml", "dagster.yaml")

WHAT_IS_INSTALLED = """
import importlib.resources, json
from ingestion_pipeline.database import queries
from ingestion_pipeline.sample_catalogue.shop import sample_products

package = importlib.resources.files("ingestion_pipeline")
print(json.dumps({
    "package": str(package),
    "statements": {name: queries.text(name) for name in queries.names()},
    "dagster.yaml": (package / "dagster.yaml").read_text(),
    "products": len(sample_products()),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: what an earlier build left beside them stays out."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, checkout / name, ignore=ignored)
        else:
            shutil.copy(source, checkout / name)
    pip("wheel", checkout, "--no-deps", "--no-build-isolation", "--wheel-dir", checkout / "dist")
    (built,) = (checkout / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content installed; its dependencies are the checkout's."""
    site = tmp_path_factory.mktemp("site")
    pip("install", wheel, "--no-deps", "--no-index", "--target", site)
    return site


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, check=True, timeout=120)


def run(site: Path, *command: str | Path) -> str:
    """What `command` prints, run away from the checkout with `site` before everything else."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        command, cwd=site, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_carries_the_statements_the_sample_shop_and_the_dagster_instance(
    wheel: Path,
) -> None:
    carried = set(ZipFile(wheel).namelist())

    statements = {f"ingestion_pipeline/sql/{path.name}" for path in REPOSITORY.glob("sql/*.sql")}
    assert statements
    assert statements <= carried
    assert "ingestion_pipeline/dagster.yaml" in carried
    assert "ingestion_pipeline/sample_catalogue/products.jsonl" in carried
    assert not [name for name in carried if "ingestion_pipeline_tests" in name]


def test_an_installed_wheel_finds_the_same_files_as_the_checkout(site: Path) -> None:
    found = json.loads(run(site, sys.executable, "-c", WHAT_IS_INSTALLED))

    assert found == {
        "package": str(site / "ingestion_pipeline"),
        "statements": {name: queries.text(name) for name in queries.names()},
        "dagster.yaml": (REPOSITORY / "dagster.yaml").read_text(),
        "products": len(sample_products()),
    }


def test_the_installed_command_answers_away_from_the_checkout(site: Path) -> None:
    assert "--limit" in run(site, site / "bin" / "ingest", "--help")
