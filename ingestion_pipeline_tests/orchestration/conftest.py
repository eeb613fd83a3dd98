"""A small shop, its settings in this process and in others, and the main job over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import LiteralString

import dagster as dg
import pytest
from psycopg import Connection

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.orchestration.failures import V2
from ingestion_pipeline.orchestration.in_process import IngestOutcome, run_ingest
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.settings import RangeSettings, Settings, WorkSettings
from ingestion_pipeline.verdict import Verdict
from ingestion_pipeline.verification.checks import CheckResult
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import DIMENSIONS, MODELS, create_products, products
from ingestion_pipeline_tests.shops import settings_for as small_settings

REPOSITORY = Path(__file__).parents[2]
INGESTED_SHOP = "ingested_shop_template"
INGESTED_STORAGE = "ingested_storage_template"

PRODUCTS = 12
PRODUCTS_PER_RANGE = 3
KEYS = [
    "*:0000000004",
    "0000000004:0000000007",
    "0000000007:0000000010",
    "0000000010:*",
]

_numbers = count(1)


@dataclass
class Heard:
    """A listener that keeps everything."""

    stages: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    moments: list[Progress] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    on_progress: Callable[[Progress], None] = lambda _: None

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, progress: Progress) -> None:
        self.moments.append(progress)
        self.on_progress(progress)

    def verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def check(self, result: CheckResult) -> None:
        self.checks.append(result)


@dataclass
class SmallShop:
    """Twelve products in four ranges of three, Dagster's instance, and what was asked of models."""

    settings: Settings
    connection: Connection[tuple[object, ...]]
    instance: dg.DagsterInstance
    models: KnownModels = field(default_factory=KnownModels)
    heard: Heard = field(default_factory=Heard)

    def ingest(self, **options: object) -> IngestOutcome:
        """The main job, with known models."""
        return run_ingest(self.settings, self.heard, models=self.models, **options)  # type: ignore[arg-type]

    def value(self, query: LiteralString) -> object:
        """The first column of the first row."""
        [row] = self.connection.execute(query).fetchall()
        return row[0]

    def materialized(self) -> list[str]:
        """The partition of every materialization of v2, oldest first."""
        records = self.instance.fetch_materializations(V2, limit=1000, ascending=True).records
        return [str(record.partition_key) for record in records]

    def runs(self, job: str) -> list[dg.DagsterRun]:
        """The runs of a job, oldest first."""
        runs = self.instance.get_runs(dg.RunsFilter(job_name=job))
        return list(reversed(list(runs)))


@pytest.fixture
def small_shop(database_url: str, dagster_instance: dg.DagsterInstance) -> Iterator[SmallShop]:
    """A shop of the test's own; nothing is ingested yet."""
    with connect(database_url) as connection:
        create_products(connection, products(PRODUCTS))
        yield SmallShop(_settings(database_url), connection, dagster_instance)


@pytest.fixture(scope="session")
def _ingested_templates(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A shop and a Dagster storage after a first run: cloning both takes a tenth of the run."""
    for name in (INGESTED_SHOP, INGESTED_STORAGE):
        server.create_database(name)
    with (
        connect(server.url(INGESTED_SHOP)) as connection,
        dagster_on(server, INGESTED_STORAGE, tmp_path_factory.mktemp("first")) as instance,
    ):
        connection.execute("CREATE EXTENSION vector")
        create_products(connection, products(PRODUCTS))
        SmallShop(_settings(server.url(INGESTED_SHOP)), connection, instance).ingest()


@pytest.fixture
def ingested_shop(
    server: LocalServer, _ingested_templates: None, tmp_path: Path
) -> Iterator[SmallShop]:
    """A shop of the test's own that is ingested already; its models have not been asked yet."""
    number = next(_numbers)
    shop, storage = f"ingested_shop_{number}", f"ingested_storage_{number}"
    server.create_database(shop, template=INGESTED_SHOP)
    server.create_database(storage, template=INGESTED_STORAGE)
    with connect(server.url(shop)) as connection, dagster_on(server, storage, tmp_path) as instance:
        yield SmallShop(_settings(server.url(shop)), connection, instance)


@contextmanager
def dagster_on(server: LocalServer, storage: str, folder: Path) -> Iterator[dg.DagsterInstance]:
    """The instance over a storage; DAGSTER_HOME and DAGSTER_PG_URL name it meanwhile."""
    shutil.copyfile(REPOSITORY / "dagster.yaml", folder / "dagster.yaml")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DAGSTER_HOME", str(folder))
        monkeypatch.setenv("DAGSTER_PG_URL", server.sqlalchemy_url(storage))
        with dg.DagsterInstance.get() as instance:
            yield instance


def _settings(database_url: str) -> Settings:
    return small_settings(database_url).model_copy(
        update={
            "ranges": RangeSettings(products_per_range=PRODUCTS_PER_RANGE),
            "work": WorkSettings(tokens_per_batch=16),
        }
    )


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Path:
    """The settings of `small_shop` as a file, named in the environment, for other processes."""
    file = tmp_path / "ingestion.toml"
    aspects = "".join(
        f'[aspects.{aspect}]\nmodel = "{MODELS[aspect]}"\ndimensions = {DIMENSIONS[aspect]}\n'
        "max_tokens = 64\n"
        for aspect in Aspect
    )
    file.write_text(
        f"[ranges]\nproducts_per_range = {PRODUCTS_PER_RANGE}\n[work]\ntokens_per_batch = 16\n"
        f"{aspects}"
    )
    monkeypatch.setenv("INGESTION_SETTINGS", str(file))
    monkeypatch.setenv("INGESTION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    return file
