"""A shop of known products whose main job runs in processes that a test can kill.

What such a process does stands in `worker`; here it is started, stopped and looked at from outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline_tests.faults import worker
from ingestion_pipeline_tests.faults.audit import Audit, audit
from ingestion_pipeline_tests.faults.worker import Act, Job, Step
from ingestion_pipeline_tests.shops import DIMENSIONS, MODELS, Product, create_products

REPOSITORY = Path(__file__).parents[2]
PRODUCTS = 48
PRODUCTS_PER_RANGE = 8
TOKENS_PER_BATCH = 16
LONGEST_BATCH = 4
"""Texts: no text of `catalogue` has fewer than 4 tokens."""

_DEADLINE_SECONDS = 120.0


def catalogue(count: int = PRODUCTS) -> list[Product]:
    """Products of which every fourth is the twin of one before, and every sixth has no usage."""
    return [
        Product(
            id_,
            f"Thing {id_ - 5 if id_ % 4 == 0 and id_ > 5 else id_}",
            "is described",
            "is used" if id_ % 6 else None,
            "has features",
        )
        for id_ in range(1, count + 1)
    ]


@dataclass(frozen=True)
class WorkerShop:
    """A shop, its settings, and the folder in which its workers note what they do."""

    settings: Settings
    folder: Path
    environment: dict[str, str]

    def fill(self, products: int = PRODUCTS) -> None:
        """Make the products table."""
        with connect(self.url) as connection:
            create_products(connection, catalogue(products))

    def reset(self) -> None:
        """As if nothing had ever been ingested, the bookkeeping's tables included."""
        with connect(self.url) as connection:
            connection.execute("DROP TABLE IF EXISTS product_embeddings_v2")
            connection.execute("DROP SCHEMA IF EXISTS ingestion CASCADE")
        shutil.rmtree(self.folder / worker.SENT, ignore_errors=True)

    @property
    def url(self) -> str:
        assert self.settings.database_url is not None
        return self.settings.database_url.get_secret_value()

    @contextmanager
    def working(
        self,
        job: Job,
        *,
        seconds: float = 0.0,
        stop_at: Step | None = None,
        nth: int = 1,
        act: Act = "kill",
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A worker, killed at the end of the block if it is still there.

        A batch takes its models `seconds`. The worker stops at `stop_at`, the `nth` time.
        """
        for note in (worker.BEGUN, worker.PAUSED, worker.RESUME):
            (self.folder / note).unlink(missing_ok=True)
        told = {
            worker.FOLDER: str(self.folder),
            worker.SECONDS: str(seconds),
            worker.STEP: stop_at or "",
            worker.NTH: str(nth),
            worker.ACT: act,
        }
        with (
            self._output.open("wb") as output,
            subprocess.Popen(
                [sys.executable, "-m", worker.__name__, job],
                cwd=REPOSITORY,
                env=self.environment | told,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def finish(self, job: Job) -> float:
        """Run a job to its end; seconds, without the time in which Python starts."""
        with self.working(job) as process:
            self.wait_until_begun(process)
            began = time.monotonic()
            assert process.wait(_DEADLINE_SECONDS) == 0, self.said()
            return time.monotonic() - began

    def wait_until_begun(self, process: subprocess.Popen[bytes]) -> None:
        """Until a worker has loaded its modules and begins to work."""
        self._wait(process, (self.folder / worker.BEGUN).exists)

    def wait_until_paused(self, process: subprocess.Popen[bytes]) -> None:
        """Until a worker has reached the step at which it was told to pause."""
        self._wait(process, (self.folder / worker.PAUSED).exists)

    def resume(self) -> None:
        """Let a paused worker go on."""
        (self.folder / worker.RESUME).touch()

    def said(self) -> str:
        """The last words of the last worker."""
        return self._output.read_text(encoding="utf-8", errors="replace")[-4000:]

    def sent(self) -> dict[str, list[str]]:
        """Every text that a worker has sent to a model since the last reset, by model."""
        return {
            file.name: file.read_text(encoding="utf-8").splitlines()
            for file in (self.folder / worker.SENT).glob("*")
        }

    def audit(self) -> Audit:
        """What the shop has come to."""
        with open_shop(self.settings) as shop:
            return audit(shop, self.sent())

    def wrong(self) -> int:
        """Vectors that are not those of today's texts, in a shop that may be unfinished."""
        with open_shop(self.settings) as shop:
            if not shop.is_prepared():
                return 0
            found = audit(shop)
            return found.wrong + found.orphans

    def spent(self) -> int:
        """Texts that committed batches have sent to models, by the shop's own account."""
        with open_shop(self.settings) as shop:
            row = shop.connection.execute("SELECT sum(texts) FROM ingestion.spend").fetchone()
            return int(row[0]) if row else 0

    @property
    def _output(self) -> Path:
        return self.folder / "output"

    def _wait(self, process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not reached():
            assert process.poll() is None, f"The worker has ended: {self.said()}"
            assert time.monotonic() < deadline, f"The worker is stuck: {self.said()}"
            time.sleep(0.005)


def worker_shop(
    database_url: str, folder: Path, dagster_home: Path, *, retry_seconds: int = 120
) -> WorkerShop:
    """The shop of a database; the environment holds DAGSTER_PG_URL."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "ingestion.toml"
    aspects = "".join(
        f'[aspects.{aspect}]\nmodel = "{MODELS[aspect]}"\ndimensions = {DIMENSIONS[aspect]}\n'
        "max_tokens = 64\n"
        for aspect in Aspect
    )
    file.write_text(
        f"[ranges]\nproducts_per_range = {PRODUCTS_PER_RANGE}\n"
        f"[work]\ntokens_per_batch = {TOKENS_PER_BATCH}\nretry_seconds = {retry_seconds}\n"
        f"{aspects}"
    )
    environment = dict(os.environ) | {
        "DATABASE_URL": database_url,
        "DAGSTER_HOME": str(dagster_home),
        "INGESTION_SETTINGS": str(file),
        "INGESTION_HOME": str(folder / "home"),
    }
    return WorkerShop(load_settings(file, environment), folder, environment)
